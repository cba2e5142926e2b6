//! A device's description as the kernel's flags and parameters.

use crate::spec::{DataPath, DeviceSpec, Recovery, SECTOR_BYTES, WriteCache};
use libublk::sys;

pub(super) fn flags(spec: &DeviceSpec) -> u64 {
    let mut flags = sys::UBLK_F_CMD_IOCTL_ENCODE;
    if spec.data_path == DataPath::UserCopy {
        flags |= sys::UBLK_F_USER_COPY;
    }
    if spec.zoned.is_some() {
        flags |= sys::UBLK_F_ZONED;
    }
    flags |= match spec.recovery {
        Recovery::None => 0,
        Recovery::Abort => sys::UBLK_F_USER_RECOVERY,
        Recovery::Reissue => sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE,
    };
    flags.into()
}

pub(super) fn params(spec: &DeviceSpec) -> sys::ublk_params {
    let shift = |n: u32| n.trailing_zeros() as u8;
    let sectors = |bytes: u64| (bytes / SECTOR_BYTES).min(u32::MAX.into()) as u32;
    let mut params = sys::ublk_params {
        len: size_of::<sys::ublk_params>() as u32,
        types: sys::UBLK_PARAM_TYPE_BASIC,
        basic: sys::ublk_param_basic {
            attrs: match spec.write_cache {
                WriteCache::Durable => 0,
                WriteCache::Volatile { fua: false } => sys::UBLK_ATTR_VOLATILE_CACHE,
                WriteCache::Volatile { fua: true } => sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA,
            },
            logical_bs_shift: shift(spec.logical_block_bytes),
            physical_bs_shift: shift(spec.physical_block_bytes),
            // Linux 7 takes the optimal size for the longest one where it stacks limits: with 4 KiB here (libublk's
            // default), btrfs sent one zone append per page. The longest request is what the device likes best.
            io_opt_shift: shift(spec.max_io_bytes),
            io_min_shift: shift(spec.physical_block_bytes),
            max_sectors: sectors(spec.max_io_bytes.into()),
            chunk_sectors: 0,
            dev_sectors: spec.size_bytes / SECTOR_BYTES,
            virt_boundary_mask: 0,
        },
        ..Default::default()
    };
    if let Some(discard) = spec.discard {
        params.types |= sys::UBLK_PARAM_TYPE_DISCARD;
        params.discard = sys::ublk_param_discard {
            discard_alignment: 0,
            discard_granularity: discard.granularity_bytes,
            max_discard_sectors: sectors(discard.max_bytes),
            max_write_zeroes_sectors: sectors(discard.max_write_zeroes_bytes),
            max_discard_segments: 1,
            reserved0: 0,
        };
    }
    if let Some(zoned) = spec.zoned {
        params.types |= sys::UBLK_PARAM_TYPE_ZONED;
        params.basic.chunk_sectors = sectors(zoned.zone_size_bytes);
        params.zoned = sys::ublk_param_zoned {
            max_open_zones: zoned.max_open_zones,
            max_active_zones: zoned.max_active_zones,
            max_zone_append_sectors: sectors(zoned.max_append_bytes.into()),
            ..Default::default()
        };
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{DiscardSpec, ZonedSpec};

    #[test]
    fn the_abi_has_the_sizes_the_kernel_expects() {
        assert_eq!(size_of::<sys::ublksrv_ctrl_cmd>(), 32);
        assert_eq!(size_of::<sys::ublksrv_io_cmd>(), 16);
        assert_eq!(size_of::<sys::ublksrv_io_desc>(), 24);
        assert_eq!(size_of::<sys::blk_zone>(), 64);
    }

    #[test]
    fn a_durable_device_asks_for_no_flushes_and_a_zoned_one_for_user_copy() {
        let plain = DeviceSpec {
            discard: Some(DiscardSpec {
                granularity_bytes: 4096,
                max_bytes: 1 << 45,
                max_write_zeroes_bytes: 0,
            }),
            ..DeviceSpec::new(1 << 30)
        };
        let told = params(&plain);
        assert_eq!(told.basic.attrs, 0);
        assert_eq!(told.basic.dev_sectors, 1 << 21);
        assert_eq!(told.basic.logical_bs_shift, 12);
        assert_eq!(1 << told.basic.io_opt_shift, plain.max_io_bytes);
        assert_eq!(told.discard.max_discard_sectors, u32::MAX);
        assert_eq!(flags(&plain) & u64::from(sys::UBLK_F_USER_COPY | sys::UBLK_F_ZONED), 0);

        let zoned = DeviceSpec {
            data_path: DataPath::UserCopy,
            recovery: Recovery::Abort,
            write_cache: WriteCache::Volatile { fua: true },
            zoned: Some(ZonedSpec {
                zone_size_bytes: 64 << 20,
                max_open_zones: 3,
                max_active_zones: 5,
                max_append_bytes: 256 << 10,
            }),
            ..DeviceSpec::new(1 << 30)
        };
        let told = params(&zoned);
        assert_eq!(told.basic.chunk_sectors, 131_072);
        assert_eq!((told.zoned.max_open_zones, told.zoned.max_active_zones), (3, 5));
        assert_eq!(told.zoned.max_zone_append_sectors, 512);
        assert_eq!(told.basic.attrs, sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA);
        let wanted = sys::UBLK_F_USER_COPY | sys::UBLK_F_ZONED | sys::UBLK_F_USER_RECOVERY;
        assert_eq!(flags(&zoned) & u64::from(wanted), u64::from(wanted));
        assert_eq!(flags(&zoned) & u64::from(sys::UBLK_F_USER_RECOVERY_REISSUE), 0);
        let again = flags(&DeviceSpec { recovery: Recovery::Reissue, ..zoned });
        let wanted = sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE;
        assert_eq!(again & u64::from(wanted), u64::from(wanted));
    }
}
