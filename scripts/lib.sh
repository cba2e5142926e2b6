# shellcheck shell=bash
# What the shell scripts share. A script sources it by its own place:
#   . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck disable=SC2034

# The repository's top directory.
storlab_top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The name that messages begin with.
script_name=$(basename "$0")

# Where everything is kept that scripts/setup makes and a machine can lose.
cache=${STORLAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/storlab}

say() { printf '%s: %s\n' "$script_name" "$*"; }
warn() { printf '%s: %s\n' "$script_name" "$*" >&2; }
die() {
  warn "$@"
  exit 1
}

# as_root COMMAND...: as root, through sudo where this is not root.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo > /dev/null; then
    sudo "$@"
  else
    die "root is needed for: $* (there is no sudo)"
  fi
}

# version_at_least VERSION MINIMUM
version_at_least() {
  [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]
}

# The User-Mode Linux kernel of a workshop beside the repository, if there is one.
sibling_uml() {
  local file
  for file in "$storlab_top"/../shared/uml/linux-*-um.xz; do
    [ ! -f "$file" ] || { realpath "$file" && return 0; }
  done
  return 1
}
