//! The record of a step: spans of its parts, folded into the part's times as they end, and kept one by one in a traced step.

use super::timeline::{Lane, Name, Timeline, TraceSpan};
use super::{Clock, Moment, seconds_between};
use crate::collective::Finished;
use crate::error::Result;
use crate::metrics::{Part, StepTimes};
use crate::sys::gpu::{Range, range};
use crate::units::{Bytes, Second};

/// A buffer that a collective works on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Message {
    /// Number of the bucket of gradients; `None` for other buffers.
    pub bucket: Option<usize>,
    /// Bytes as the ledger counts them.
    pub bytes: Bytes,
}

/// The times of one step on one rank, some of which may still lie between incomplete events.
pub struct StepRecorder {
    clock: Clock,
    known: StepTimes,
    later: Vec<(Part, Moment, Moment)>,
    timeline: Option<Box<Timeline>>,
}

impl Default for StepRecorder {
    /// A record by the host clock, of a step that is not traced.
    fn default() -> StepRecorder {
        StepRecorder { clock: Clock::Host, known: StepTimes::default(), later: Vec::new(), timeline: None }
    }
}

/// A part of the step that has begun; it shows as an NVTX range until it ends.
pub struct Open {
    part: Part,
    from: Moment,
    _range: Range,
}

impl StepRecorder {
    /// An empty record by `clock`; a `traced` step keeps each span, and on a GPU waits for the work enqueued before it.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn new(clock: &Clock, traced: bool) -> Result<StepRecorder> {
        let timeline = if traced { Some(Box::new(Timeline::new(clock)?)) } else { None };
        Ok(StepRecorder { clock: clock.clone(), timeline, ..StepRecorder::default() })
    }

    /// Begins a part.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn begin(&self, part: Part) -> Result<Open> {
        let _range = range(part.range_name());
        Ok(Open { part, from: self.clock.now()?, _range })
    }

    /// Ends a part.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn end(&mut self, open: Open) -> Result<()> {
        self.end_around(open, &[])
    }

    /// Ends a part within which the host waited for collectives (`inside`): they count as exposed communication, the rest as the part.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn end_around(&mut self, open: Open, inside: &[(Finished, Message)]) -> Result<()> {
        let to = self.clock.now()?;
        self.keep(Lane::Compute, open.part, Message::default(), &open.from, &to);
        self.fold(open.part, open.from, to);
        for (finished, message) in inside {
            self.known.add(open.part, -finished.seconds());
            self.collective(finished, *message, true);
        }
        Ok(())
    }

    /// Adds a collective of the host; `exposed`: the rank did nothing else meanwhile.
    pub fn collective(&mut self, finished: &Finished, message: Message, exposed: bool) {
        self.known.add(Part::CommWait, finished.wait());
        self.known.add(Part::Comm, finished.transfer());
        let [from, to] = [finished.entered, finished.done].map(Moment::Host);
        if exposed {
            self.known.add(Part::CommExposed, finished.seconds());
            self.keep(Lane::Compute, Part::CommExposed, message, &from, &to);
        }
        self.keep(Lane::Communication, Part::Comm, message, &from, &to);
        for (entered, arrived) in finished.waits.spans() {
            let [from, to] = [entered, arrived].map(Moment::Host);
            self.keep(Lane::Communication, Part::CommWait, message, &from, &to);
        }
    }

    /// Adds a collective that runs from one moment of the device to another, while the rank may compute.
    pub fn transfer(&mut self, from: Moment, to: Moment, message: Message) {
        self.keep(Lane::Communication, Part::Comm, message, &from, &to);
        self.fold(Part::Comm, from, to);
    }

    /// Notes that the gradients of `bucket` are complete, at `moment` of the device or now.
    pub fn ready(&mut self, bucket: usize, moment: Option<Moment>) {
        if let Some(timeline) = &mut self.timeline {
            let moment = moment.unwrap_or_else(|| Moment::Host(std::time::Instant::now()));
            let message = Message { bucket: Some(bucket), bytes: 0 };
            timeline.push(Lane::Compute, Name::Ready, message, &moment, &moment);
        }
    }

    /// Adds `seconds` to `part`.
    pub fn add(&mut self, part: Part, seconds: Second) {
        self.known.add(part, seconds);
    }

    fn fold(&mut self, part: Part, from: Moment, to: Moment) {
        match (from, to) {
            (Moment::Host(from), Moment::Host(to)) => self.known.add(part, to.duration_since(from).as_secs_f64()),
            (from, to) => self.later.push((part, from, to)),
        }
    }

    fn keep(&mut self, lane: Lane, part: Part, message: Message, from: &Moment, to: &Moment) {
        if let Some(timeline) = &mut self.timeline {
            timeline.push(lane, Name::Part(part), message, from, to);
        }
    }

    /// The times of the step; waits until all events are complete.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn resolve(&mut self) -> Result<StepTimes> {
        for (part, from, to) in self.later.drain(..) {
            self.known.add(part, seconds_between(&from, &to)?);
        }
        Ok(self.known)
    }

    /// Number of spans of a traced step so far.
    pub fn span_count(&self) -> usize {
        self.timeline.as_ref().map_or(0, |timeline| timeline.len())
    }

    /// The spans of a traced step, and none of another; waits until all events are complete.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn spans(&mut self) -> Result<Vec<TraceSpan>> {
        self.timeline.take().map_or_else(|| Ok(Vec::new()), |timeline| timeline.spans())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pause() -> Result<()> {
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    }

    #[test]
    fn a_collective_within_a_part_is_exposed_and_not_of_the_part() {
        let mut times = StepRecorder::new(&Clock::Host, true).unwrap();
        let step = times.begin(Part::Step).unwrap();
        let forward = times.begin(Part::Forward).unwrap();
        pause().unwrap();
        let inside = Finished::of(|waits| waits.time(pause)).unwrap();
        let message = Message { bucket: None, bytes: 12 };
        times.end_around(forward, &[(inside.clone(), message)]).unwrap();
        times.ready(3, None);
        times.end(step).unwrap();
        let of = times.resolve().unwrap();
        let get = |part| f64::from(of.get(part));
        assert!((get(Part::CommExposed) - inside.seconds()).abs() < 1e-6);
        assert!((get(Part::CommWait) + get(Part::Comm) - inside.seconds()).abs() < 1e-6);
        assert!(get(Part::Forward) >= 1e-3 && get(Part::Forward) + inside.seconds() <= get(Part::Step) + 1e-6);

        let spans = times.spans().unwrap();
        let found = |lane, name| spans.iter().find(|span| (span.lane, span.name) == (lane, Name::Part(name))).unwrap();
        let (comm, wait) = (found(Lane::Communication, Part::Comm), found(Lane::Communication, Part::CommWait));
        assert!(comm.start <= wait.start && wait.end <= comm.end && comm.message == message);
        let forward = found(Lane::Compute, Part::Forward);
        assert!(forward.start <= comm.start && comm.end <= forward.end); // the part's span holds the collective's
        let ready = spans.iter().find(|span| span.name == Name::Ready).unwrap();
        assert!(ready.start == ready.end && ready.message.bucket == Some(3) && ready.start >= forward.end);
        assert!(times.spans().unwrap().is_empty());
    }

    #[test]
    fn a_step_that_is_not_traced_keeps_no_spans() {
        let mut times = StepRecorder::default();
        let open = times.begin(Part::Data).unwrap();
        times.end(open).unwrap();
        times.ready(0, None);
        assert!(times.spans().unwrap().is_empty());
    }
}
