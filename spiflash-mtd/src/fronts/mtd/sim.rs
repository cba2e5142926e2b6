//! What the owner of a bus of simulated chips can do to them, for the control files.

use super::control::ChipControl;
use crate::bus::BusError;
use crate::chip::Chip;
use crate::sim::SimBus;
use crate::states::State;

impl ChipControl for SimBus {
    fn stats(&mut self, select: u8) -> serde_json::Value {
        let Some(chip) = self.chip(select) else { return serde_json::Value::Null };
        let array = chip.array();
        let erases = |unit: u32| array.unit(unit).map_or(0, |unit| u64::from(unit.cycles));
        let (total, most) = (0..array.unit_count()).fold((0u64, 0), |(total, most), unit| {
            let erases = erases(unit);
            (total.saturating_add(erases), most.max(erases))
        });
        serde_json::json!({
            "state": format!("{:?}", chip.state()),
            "now_ns": chip.now_ns(),
            "commands": serde_json::to_value(chip.stats()).unwrap_or_default(),
            "wear": { "units": array.unit_count(), "erases": total, "most_erases": most },
        })
    }

    fn map(&mut self, select: u8) -> String {
        self.chip(select).map(|chip| crate::map::ArrayMap::of(chip).to_string()).unwrap_or_default()
    }

    fn is_write_protected(&mut self, select: u8) -> bool {
        self.chip(select).is_some_and(Chip::is_write_protect_low)
    }

    fn is_powered(&mut self, select: u8) -> bool {
        self.chip(select).is_some_and(|chip| chip.state() != State::Off)
    }

    fn cut_after(&mut self, select: u8, delay_ns: Option<u64>) -> Result<(), BusError> {
        let chips = crate::SpiBus::chips(self);
        let chip = self.chip_mut(select).ok_or(BusError::NoChip { select, chips })?;
        let at_ns = delay_ns.map(|delay_ns| chip.now_ns().saturating_add(delay_ns));
        chip.set_cut_at_ns(at_ns);
        Ok(())
    }
}
