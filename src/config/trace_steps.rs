//! The steps that are traced: `metrics.trace_steps`.

use std::ops::Range;

/// Steps of which each span is kept, as `metrics.trace_steps` names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceSteps {
    ranges: Vec<Range<usize>>,
    /// Interval of steps, counted from step 0, one of which is traced each time.
    every: Option<usize>,
}

impl TraceSteps {
    /// Reads a text such as `100..110, 500, every 1000`: steps 100 to 109, step 500, and 0, 1000, 2000, ...; none if it is empty.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<TraceSteps, String> {
        let mut steps = TraceSteps::default();
        let form = |part: &str| format!("{part:?} is neither a range of steps such as 100..110 nor \"every 1000\"");
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let number = |text: &str| text.trim().parse::<usize>().map_err(|_| form(part));
            if let Some(every) = part.strip_prefix("every") {
                let every = number(every.trim_start().trim_start_matches('='))?;
                if every == 0 || steps.every.replace(every).is_some() {
                    return Err(format!("{part:?}: one number of at least 1"));
                }
                continue;
            }
            let range = match part.split_once("..") {
                Some((from, to)) => number(from)?..number(to)?,
                None => number(part)?..number(part)?.saturating_add(1),
            };
            if range.is_empty() {
                return Err(format!("{part:?} holds no step: the end is not traced"));
            }
            steps.ranges.push(range);
        }
        Ok(steps)
    }

    /// Whether no step is traced.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.every.is_none()
    }

    /// Whether `step` is traced.
    pub fn contains(&self, step: usize) -> bool {
        self.ranges.iter().any(|range| range.contains(&step))
            || self.every.is_some_and(|every| step.is_multiple_of(every))
    }

    /// The first range that has no step below `steps`, the number of steps of a training.
    pub fn beyond(&self, steps: usize) -> Option<Range<usize>> {
        self.ranges.iter().find(|range| range.start >= steps).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_every_so_many_steps_are_read() {
        let steps = TraceSteps::parse("100..110, 500,every 1000").unwrap();
        let traced: Vec<usize> = (0..2500).filter(|&step| steps.contains(step)).collect();
        assert_eq!(traced, [0].into_iter().chain(100..110).chain([500, 1000, 2000]).collect::<Vec<_>>());
        assert_eq!((steps.beyond(500), steps.beyond(501)), (Some(500..501), None));
        assert_eq!(TraceSteps::parse("every = 7"), TraceSteps::parse("every 7"));
        assert!(TraceSteps::parse(" ").unwrap().is_empty());
        assert!(!TraceSteps::parse("a\nb").unwrap_err().contains('\n')); // a message is one line
        for wrong in ["5..5", "9..3", "x", "1..", "..4", "every", "every 0", "every 2, every 3", "1..2..3", "-1"] {
            assert!(TraceSteps::parse(wrong).is_err(), "{wrong}");
        }
    }
}
