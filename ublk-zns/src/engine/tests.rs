use super::*;
use crate::zones::ZoneState;

fn config() -> ZnsConfig {
    ZnsConfig {
        size_bytes: 4 << 20,
        zone_size_bytes: 1 << 20,
        zone_capacity_bytes: Some(768 << 10),
        max_open_zones: Some(2),
        max_active_zones: Some(3),
        ..Default::default()
    }
}

fn at(path: &Path) -> DeviceOptions {
    DeviceOptions::new(config(), MediaPlace::Ram(path.to_owned()))
}

#[test]
fn what_was_written_is_read_and_the_rest_is_zeroes() {
    let device = ZnsDevice::new(&config()).unwrap();
    device.write(Sector(0), &[1; 4096]).unwrap();
    assert_eq!(device.append(ZoneId(0), &[2; 8192]).unwrap(), Sector(8));
    let mut back = vec![9; 16384];
    device.read(Sector(0), &mut back).unwrap();
    assert_eq!(back[..4096], [1; 4096]);
    assert_eq!(back[4096..12288], [2; 8192]);
    assert_eq!(back[12288..], [0; 4096]);
}

#[test]
fn a_reset_zone_reads_as_zeroes_and_can_be_written_again() {
    let device = ZnsDevice::new(&config()).unwrap();
    device.write(Sector(2048), &[7; 4096]).unwrap();
    device.reset_zone(ZoneId(1)).unwrap();
    let mut back = [9; 4096];
    device.read(Sector(2048), &mut back).unwrap();
    assert_eq!(back, [0; 4096]);
    device.write(Sector(2048), &[8; 4096]).unwrap();
    device.finish_zone(ZoneId(1)).unwrap();
    device.read(Sector(2048), &mut back).unwrap();
    assert_eq!(back, [8; 4096]);
    device.read(Sector(2056), &mut back).unwrap();
    assert_eq!(back, [0; 4096]);
}

#[test]
fn odd_lengths_are_refused() {
    let device = ZnsDevice::new(&config()).unwrap();
    assert!(device.write(Sector(0), &[1; 100]).is_err());
    assert!(device.write(Sector(0), &[]).is_err());
    assert!(device.read(Sector(0), &mut [0; 513]).is_err());
    assert_eq!(device.describe(ZoneId(0)).unwrap().state, ZoneState::Empty);
}

#[test]
fn a_device_comes_back_from_its_file_with_states_limits_and_data() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("media");
    let device = ZnsDevice::create(&at(&path)).unwrap();
    device.open_zone(ZoneId(0)).unwrap();
    device.write(Sector(2048), &[5; 4096]).unwrap();
    device.write(Sector(4096), &[6; 4096]).unwrap();
    device.fail(ZoneId(3)).unwrap();
    let before = device.report();
    drop(device);
    let device = ZnsDevice::open(&at(&path), false).unwrap();
    assert_eq!(device.report(), before);
    assert_eq!(device.resources(), (2, 3));
    let mut back = [0; 4096];
    device.read(Sector(2048), &mut back).unwrap();
    assert_eq!(back, [5; 4096]);
    assert!(device.read(Sector(6144), &mut back).is_err());
}

#[test]
fn writes_that_race_a_reset_are_whole_or_gone() {
    let device = ZnsDevice::new(&config()).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..2000 {
                // A write that is done is in the media until the next reset; one that lost its place is refused.
                let _ = device.write(Sector(0), &[7; 4096]);
            }
        });
        while !writer.is_finished() {
            device.reset_zone(ZoneId(0)).unwrap();
            let mut back = [1; 4096];
            device.read(Sector(0), &mut back).unwrap();
            assert!(back == [0; 4096] || back == [7; 4096]);
        }
    });
    let written = device.describe(ZoneId(0)).unwrap().write_pointer.0;
    let mut back = [1; 4096];
    device.read(Sector(0), &mut back).unwrap();
    assert_eq!(back, if written == 0 { [0; 4096] } else { [7; 4096] });
}

#[test]
fn parallel_appends_to_one_zone_each_get_their_own_place() {
    let device = ZnsDevice::new(&config()).unwrap();
    let mut places: Vec<u64> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4u8)
            .map(|who| {
                let device = &device;
                scope.spawn(move || -> Vec<u64> {
                    (0..48).map(|_| device.append(ZoneId(2), &[who; 4096]).unwrap().0).collect()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    places.sort_unstable();
    assert_eq!(places, (0..192).map(|n| 4096 + n * 8).collect::<Vec<_>>());
    assert_eq!(device.describe(ZoneId(2)).unwrap().state, ZoneState::Full);
}
