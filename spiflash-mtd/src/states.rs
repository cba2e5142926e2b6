//! The second state machine: what the chip is doing, from one rise of CS# to the next. The first, the frame's phases, is
//! [`crate::frame`].
//!
//! The invariant: the chip changes its state by [`next`] alone, so that the diagram drawn from it ([`diagram`]) is the chip's.
//! What `next` refuses, the chip ignores.

use serde::{Deserialize, Serialize};

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$item_doc])* $item),* }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$item),*];
        }
    };
}

named! {
    /// What the chip is doing.
    State {
        /// It has no power.
        Off,
        /// It has power, and takes no command before tVSL.
        PowerUp,
        /// It waits for commands.
        Idle,
        /// It writes nonvolatile registers.
        WriteStatus,
        /// It programs a page (or a security register).
        Program,
        /// It erases a sector or block (or a security register).
        Erase,
        /// It erases everything.
        ChipErase,
        /// NAND: it reads a page into its buffer.
        PageRead,
        /// It interrupts an erase.
        EraseSuspending,
        /// An erase is interrupted: other blocks can be read and programmed.
        EraseSuspended,
        /// It programs a page while an erase is interrupted.
        ProgramInSuspend,
        /// It interrupts a program.
        ProgramSuspending,
        /// A program is interrupted: other pages can be read.
        ProgramSuspended,
        /// It sleeps: only a release wakes it.
        DeepPowerDown,
        /// It wakes up.
        Releasing,
        /// It resets itself.
        Resetting,
    }
}

named! {
    /// What happens to it.
    Event {
        /// Power comes.
        PowerOn,
        /// Power goes.
        PowerOff,
        /// The time of what it is doing is over.
        Done,
        /// A frame asks for a write of registers.
        WriteStatus,
        /// A frame asks for a program.
        Program,
        /// A frame asks for an erase.
        Erase,
        /// A frame asks for an erase of all.
        ChipErase,
        /// NAND: a frame asks for a page.
        PageRead,
        /// 75h.
        Suspend,
        /// 7Ah.
        Resume,
        /// B9h.
        PowerDown,
        /// ABh.
        Release,
        /// 99h after 66h.
        Reset,
    }
}

/// The state after an event; `None` where the chip ignores it.
///
/// Sources: Winbond W25Q128JV, section 8.2 (instructions; suspend in 8.2.17-18, reset in 8.2.43); the same rules are
/// in JESD216 (dwords 12 to 14 and 16 of the basic table) and in the data sheets of the other makers.
pub const fn next(state: State, event: Event) -> Option<State> {
    use Event as E;
    use State as S;
    Some(match (state, event) {
        (S::Off, E::PowerOn) => S::PowerUp,
        (S::Off, _) => return None,
        (_, E::PowerOff) => S::Off,
        (S::PowerUp, E::Done) => S::Idle,
        (S::PowerUp, _) => return None,
        (S::Idle, E::WriteStatus) => S::WriteStatus,
        (S::Idle, E::Program) => S::Program,
        (S::Idle, E::Erase) => S::Erase,
        (S::Idle, E::ChipErase) => S::ChipErase,
        (S::Idle, E::PageRead) => S::PageRead,
        (S::Idle, E::PowerDown) => S::DeepPowerDown,
        (S::WriteStatus | S::Program | S::Erase | S::ChipErase | S::PageRead, E::Done) => S::Idle,
        (S::Erase, E::Suspend) => S::EraseSuspending,
        (S::Program, E::Suspend) => S::ProgramSuspending,
        (S::EraseSuspending, E::Done) => S::EraseSuspended,
        (S::ProgramSuspending, E::Done) => S::ProgramSuspended,
        (S::EraseSuspended, E::Program) => S::ProgramInSuspend,
        (S::ProgramInSuspend, E::Done) => S::EraseSuspended,
        (S::EraseSuspended, E::Resume) => S::Erase,
        (S::ProgramSuspended, E::Resume) => S::Program,
        (S::DeepPowerDown, E::Release) => S::Releasing,
        (S::Releasing | S::Resetting, E::Done) => S::Idle,
        (S::DeepPowerDown | S::Releasing | S::Resetting, _) => return None,
        (_, E::Reset) => S::Resetting,
        _ => return None,
    })
}

impl State {
    /// Whether BUSY reads 1.
    pub const fn is_busy(self) -> bool {
        !matches!(self, State::Idle | State::EraseSuspended | State::ProgramSuspended | State::DeepPowerDown)
    }

    /// Whether time alone ends it.
    pub const fn is_timed(self) -> bool {
        next(self, Event::Done).is_some()
    }

    /// Whether an erase is interrupted.
    pub const fn erase_suspended(self) -> bool {
        matches!(self, State::EraseSuspended | State::ProgramInSuspend)
    }

    /// Whether a program is interrupted.
    pub const fn program_suspended(self) -> bool {
        matches!(self, State::ProgramSuspended)
    }

    /// Whether frames are heard at all.
    pub const fn hears(self) -> bool {
        !matches!(self, State::Off | State::PowerUp | State::Releasing | State::Resetting)
    }
}

/// Both machines as Mermaid diagrams: this one from [`next`], the frame's from its phases' order.
pub fn diagram() -> String {
    let mut text = String::from("```mermaid\nstateDiagram-v2\n    [*] --> Off\n");
    for state in State::ALL {
        for event in Event::ALL {
            // Power can go and a reset can come nearly everywhere: drawn once, below.
            if matches!(event, Event::PowerOff | Event::Reset) {
                continue;
            }
            if let Some(after) = next(*state, *event) {
                text.push_str(&format!("    {state:?} --> {after:?}: {event:?}\n"));
            }
        }
    }
    let reset = State::ALL.iter().filter(|state| next(**state, Event::Reset).is_some());
    let names: Vec<String> = reset.map(|state| format!("{state:?}")).collect();
    text.push_str("```\n\n");
    text.push_str("PowerOff leads from every state to Off. Reset leads to Resetting from ");
    text.push_str(&names.join(", "));
    text.push_str(".\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_reached_and_left() {
        for state in State::ALL {
            let reached = State::ALL.iter().any(|from| {
                Event::ALL.iter().any(|event| next(*from, *event) == Some(*state) && from != state)
            });
            assert!(reached, "{state:?} is never reached");
            assert!(Event::ALL.iter().any(|event| next(*state, *event).is_some()), "{state:?} is never left");
        }
    }

    #[test]
    fn power_goes_from_every_state_and_time_ends_every_busy_one() {
        for state in State::ALL {
            assert!(*state == State::Off || next(*state, Event::PowerOff) == Some(State::Off));
            if state.is_busy() && *state != State::Off {
                assert!(state.is_timed(), "{state:?} would stay busy for ever");
            }
        }
    }

    #[test]
    fn the_documented_diagram_is_the_one_of_the_code() {
        let page = include_str!("../../docs/spi-states.md");
        assert!(page.contains(&diagram()), "docs/spi-states.md: put in the output of `spiflash-mtd states`");
    }
}
