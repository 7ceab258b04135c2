//! Axes: the place of each value, and the ticks.

use super::Area;
use super::shapes::{BLACK, Drawing, PALE, Text};
use crate::report::figure::{Axis, Scale};
use crate::units::{fitting_unit, format_bytes, format_seconds};

/// An axis laid out over its values.
pub struct Placed {
    /// Axis title with its unit.
    pub title: String,
    /// Ticks (place from 0 to 1, text) in ascending order.
    pub ticks: Vec<(f64, String)>,
    lower: f64,
    upper: f64,
    is_log: bool,
    /// Unit of the values as in the run file.
    units: String,
    /// Factor and name of the unit that the ticks have; the name is empty if there is none, or each tick names its own.
    shown: (f64, String),
}

impl Placed {
    /// The place of `value`, 0 to 1; `None` if the axis cannot show it.
    pub fn place(&self, value: f64) -> Option<f64> {
        let value = if self.is_log { value.log10() } else { value };
        let place = (value - self.lower) / (self.upper - self.lower);
        (place.is_finite() && (-1e-9..=1.0 + 1e-9).contains(&place)).then_some(place)
    }

    /// Draws the axis below the plot `area`: a line up through it at each tick, the ticks' texts, the title.
    pub fn draw_below(&self, drawing: &mut Drawing, area: Area, font: f64) {
        let Area { left, top, right, bottom } = area;
        for (place, text) in &self.ticks {
            let at = left + place * (right - left);
            drawing.path(vec![(at, top), (at, bottom)], 1.0, PALE);
            drawing.text(Text::new((at, bottom + 14.0), text, font, BLACK));
        }
        drawing.text(Text::new(((left + right) / 2.0, bottom + 34.0), &self.title, font, BLACK));
    }

    /// Formats `value` with the axis's unit: `3.21 ms`, `32`; on an axis whose ticks have units of their own, with the one that fits.
    pub fn show(&self, value: f64) -> String {
        let (factor, unit) = &self.shown;
        match self.units.as_str() {
            "s" if unit.is_empty() => format_seconds(value),
            "B" if unit.is_empty() && value >= 0.0 => format_bytes(value.round() as u64),
            _ => format!("{} {unit}", digits(value * factor)).trim_end().to_owned(),
        }
    }

    /// Lays out an axis over `values` with at most `most_ticks` ticks.
    pub fn new(axis: &Axis, values: &[f64], most_ticks: usize) -> Placed {
        let wanted_log = matches!(axis.scale, Scale::Values | Scale::Log | Scale::Auto);
        let finite = values.iter().copied().filter(|value| value.is_finite() && (!wanted_log || *value > 0.0));
        let mut values: Vec<f64> = finite.collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (least, most) = match (values.first(), values.last()) {
            (Some(least), Some(most)) => (*least, *most),
            _ => (1.0, 1.0),
        };
        match axis.scale {
            // Numbers of ranks and batch sizes are short texts, so more of them fit.
            Scale::Values => Placed::at_values(axis, &values, least, most, 2 * most_ticks),
            Scale::Log => Placed::logarithmic(axis, least, most, most_ticks),
            Scale::Auto if most > 30.0 * least && most < 1000.0 * least => Placed::in_steps(axis, least, most),
            Scale::Auto if most > 30.0 * least => Placed::logarithmic(axis, least, most, most_ticks),
            Scale::Auto | Scale::Zero => Placed::linear(axis, least.min(0.0), most, most_ticks),
            Scale::Linear => {
                let whole = values.iter().all(|value| value.fract() == 0.0);
                Placed::between(axis, least, most, if whole { 1.0 } else { 0.0 }, most_ticks)
            }
        }
    }

    /// A linear axis from a tick at or below `least` to one at or above `most`.
    fn linear(axis: &Axis, least: f64, most: f64, most_ticks: usize) -> Placed {
        let (factor, unit, least, most) = in_unit(axis, least, most);
        let step = nice_step((most - least) / most_ticks.max(1) as f64);
        let (first, last) = ((least / step + 1e-9).floor(), (most / step - 1e-9).ceil());
        let (lower, upper) = (first * step, last * step);
        let ticks = linear_ticks(lower, upper, step, (first, last));
        Placed::of(axis, (factor, unit), ticks, (lower / factor, upper / factor), false)
    }

    /// A linear axis from `least` to `most` with a little room at its ends; `least_step` 1: ticks at whole numbers.
    fn between(axis: &Axis, least: f64, most: f64, least_step: f64, most_ticks: usize) -> Placed {
        let (factor, unit, least, most) = in_unit(axis, least, most);
        let step = nice_step((most - least) / most_ticks.max(1) as f64).max(least_step);
        let room = 0.03 * (most - least);
        let (lower, upper) = (least - room, most + room);
        let ticks = linear_ticks(lower, upper, step, ((lower / step).ceil(), (upper / step).floor()));
        Placed::of(axis, (factor, unit), ticks, (lower / factor, upper / factor), false)
    }

    /// A logarithmic axis with ticks at 1, 2, 5, 10, 20, ...
    fn in_steps(axis: &Axis, least: f64, most: f64) -> Placed {
        let (factor, unit) = fitting_unit(&axis.units, most);
        let first = (least * factor).log10().floor() as i32;
        let steps = (0..5).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(first + decade)));
        let steps: Vec<f64> = steps.collect();
        // The last tick below all values and the first one above them.
        let from = steps.iter().rposition(|step| *step <= least * factor * (1.0 + 1e-9)).unwrap_or(0);
        let to = steps.iter().position(|step| *step >= most * factor * (1.0 - 1e-9)).unwrap_or(steps.len() - 1);
        let (lower, upper) = (steps[from].log10(), steps[to.max(from + 1).min(steps.len() - 1)].log10());
        let place = |step: &f64| ((step.log10() - lower) / (upper - lower), short(*step));
        let ticks = steps[from..=to.max(from)].iter().map(place).collect();
        Placed::of(axis, (factor, unit), ticks, (lower - factor.log10(), upper - factor.log10()), true)
    }

    fn logarithmic(axis: &Axis, least: f64, most: f64, most_ticks: usize) -> Placed {
        // Below two decades, powers of two (1, 2, 4, 8, 16) tell more than 1 and 10.
        let base: f64 = if most / least < 100.0 { 2.0 } else { 10.0 };
        let (first, mut last) = ((least.log(base) + 1e-9).floor(), (most.log(base) - 1e-9).ceil());
        if last <= first {
            last = first + 1.0;
        }
        let every = ((last - first) / most_ticks.max(1) as f64).ceil().max(1.0);
        let exponents = (0..=((last - first) / every).min(64.0) as usize).map(|index| first + index as f64 * every);
        let tick = |exponent: f64| ((exponent - first) / (last - first), power_label(axis, base.powf(exponent)));
        let ticks = exponents.map(tick).collect();
        let (lower, upper) = (first * base.log10(), last * base.log10());
        let unit = if matches!(axis.units.as_str(), "B" | "s") { "" } else { fitting_unit(&axis.units, 0.0).1 };
        Placed::of(axis, (1.0, unit), ticks, (lower, upper), true)
    }

    fn at_values(axis: &Axis, values: &[f64], least: f64, most: f64, most_ticks: usize) -> Placed {
        // Room at both ends keeps the first and the last marker off the frame.
        let pad = if most > least { 0.04 * (most / least).log10() } else { 0.3 };
        let (lower, upper) = (least.log10() - pad, most.log10() + pad);
        let every = values.len().div_ceil(most_ticks.max(1)).max(1);
        let place = |value: f64| (value.log10() - lower) / (upper - lower);
        let ticks = values.iter().step_by(every).map(|value| (place(*value), short(*value))).collect();
        Placed::of(axis, fitting_unit(&axis.units, 0.0), ticks, (lower, upper), true)
    }

    fn of(
        axis: &Axis,
        (factor, unit): (f64, &str),
        ticks: Vec<(f64, String)>,
        (lower, upper): (f64, f64),
        is_log: bool,
    ) -> Placed {
        let (title, units, shown) = (titled(axis, unit), axis.units.clone(), (factor, unit.to_owned()));
        Placed { title, ticks, lower, upper, is_log, units, shown }
    }
}

/// The factor and name of the unit that fits, and the ends of the axis in it; equal ends are moved apart.
fn in_unit(axis: &Axis, least: f64, most: f64) -> (f64, &str, f64, f64) {
    let (factor, unit) = fitting_unit(&axis.units, most.abs().max(least.abs()));
    let (least, mut most) = (least * factor, most * factor);
    if most - least < f64::MIN_POSITIVE {
        most = least + (0.1 * least.abs()).max(f64::MIN_POSITIVE);
    }
    if least == 0.0 && most < 1e-300 {
        most = 1.0; // nothing but zeros: an axis to 1
    }
    (factor, unit, least, most)
}

/// Ticks at every multiple of `step`, from the `first` to the `last` multiple.
fn linear_ticks(lower: f64, upper: f64, step: f64, (first, last): (f64, f64)) -> Vec<(f64, String)> {
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    let tick = |index: usize| {
        // `+ 0.0` turns -0 into 0.
        let value = (first + index as f64) * step + 0.0;
        let huge = value.abs() >= 1e7;
        let text = if huge { format!("{value:.1e}") } else { format!("{value:.decimals$}") };
        ((value - lower) / (upper - lower), text)
    };
    (0..=(last - first).clamp(0.0, 64.0) as usize).map(tick).collect()
}

fn titled(axis: &Axis, unit: &str) -> String {
    if unit.is_empty() { axis.label.clone() } else { format!("{} ({unit})", axis.label) }
}

fn power_label(axis: &Axis, value: f64) -> String {
    match axis.units.as_str() {
        "B" if value >= 1.0 => {
            let text = format_bytes(value.round() as u64);
            text.replace(".00 ", " ").replace(".0 ", " ")
        }
        "s" => format_seconds(value).replace(".00 ", " ").replace(".0 ", " "),
        // From 1e5 on, zeros would have to be counted.
        _ if !(1e-3..1e5).contains(&value) && value.log10().fract().abs() < 1e-9 => format!("1e{:.0}", value.log10()),
        _ => short(value),
    }
}

/// Formats `value` with four digits or, if it is whole, all of them.
fn digits(value: f64) -> String {
    let magnitude = value.abs();
    match value.fract() == 0.0 && magnitude < 1e12 {
        true => format!("{value:.0}"),
        false if !(1e-4..1e6).contains(&magnitude) => format!("{value:.3e}"),
        false => format!("{value:.*}", (3.0 - magnitude.log10().floor()).clamp(0.0, 8.0) as usize),
    }
}

/// Formats `value` with few digits: `0.001`, `2.5`, `1024`, `1e6`.
fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e6).contains(&magnitude) {
        return format!("{value:e}").chars().take(9).collect();
    }
    let decimals = (2.0 - magnitude.max(1e-9).log10().floor()).clamp(0.0, 6.0) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The least number of the form 1, 2 or 5 times a power of ten that is at least `step`.
fn nice_step(step: f64) -> f64 {
    let step = step.max(f64::MIN_POSITIVE);
    let power = 10f64.powf(step.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|nice| nice * power >= step * (1.0 - 1e-9));
    nice.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, units: &str, values: &[f64]) -> (String, Vec<String>) {
        let placed = Placed::new(&Axis::new("x", units, scale), values, 6);
        assert!(values.iter().filter(|v| v.is_finite() && **v > 0.0).all(|value| placed.place(*value).is_some()));
        (placed.title, placed.ticks.into_iter().map(|(_, text)| text).collect())
    }

    #[test]
    fn ticks_are_round_and_in_a_fitting_unit() {
        assert_eq!(
            ticks(Scale::Zero, "s", &[0.0412]),
            ("x (ms)".into(), ["0", "10", "20", "30", "40", "50"].map(str::to_owned).into())
        );
        assert_eq!(ticks(Scale::Values, "1", &[1.0, 2.0, 3.0, 8.0]).1, ["1", "2", "3", "8"]);
        assert_eq!(ticks(Scale::Log, "B", &[10.0, 1e6]).1, ["10 B", "100 B", "1 kB", "10 kB", "100 kB", "1 MB"]);
        assert_eq!(
            ticks(Scale::Auto, "1/s", &[4000.0, 170_000.0]).1,
            ["2000", "5000", "10000", "20000", "50000", "100000", "200000"]
        );
        assert_eq!(ticks(Scale::Linear, "1", &[0.0, 1.0, 2.0]).1, ["0", "1", "2"]);
        assert_eq!(ticks(Scale::Log, "GB/s", &[1.0, 9.0]).1, ["1", "2", "4", "8", "16"]);
    }

    #[test]
    fn all_values_of_an_axis_are_shown_in_its_unit() {
        let shown = |scale, units: &str, values: &[f64]| {
            let placed = Placed::new(&Axis::new("x", units, scale), values, 6);
            values.iter().map(|value| placed.show(*value)).collect::<Vec<_>>()
        };
        assert_eq!(shown(Scale::Zero, "s", &[0.52, 9.4567]), ["0.5200 s", "9.457 s"]);
        assert_eq!(shown(Scale::Values, "1", &[1.0, 16.0]), ["1", "16"]);
        assert_eq!(shown(Scale::Log, "s", &[2e-6, 0.04]), ["2.00 us", "40.0 ms"]); // as the ticks of this axis
        assert_eq!(shown(Scale::Auto, "samples/s", &[4187.25]), ["4187 samples/s"]);
        assert_eq!(shown(Scale::Linear, "percent", &[0.0, 43.5]), ["0 %", "43.50 %"]);
    }

    #[test]
    fn odd_values_still_make_an_axis() {
        for scale in [Scale::Linear, Scale::Zero, Scale::Values, Scale::Log, Scale::Auto] {
            for values in
                [&[][..], &[0.0], &[3.0], &[f64::NAN; 2], &[-1.0], &[f64::INFINITY, 1e300], &[5e-324], &[1e18, 1.0]]
            {
                let placed = Placed::new(&Axis::new("x", "s", scale), values, 6);
                assert!(
                    placed.ticks.len() < 100 && placed.ticks.iter().all(|(place, _)| place.is_finite()),
                    "{scale:?} {values:?}"
                );
            }
        }
    }
}
