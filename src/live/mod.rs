//! What rank 0 shows of the work while it runs: a bar on a terminal, a line every `metrics.progress_seconds` elsewhere, and of a
//! training the log (`metrics.log`) and TensorBoard's event files.
//!
//! In: the configuration's `[metrics]`, and what rank 0 knows of the work anyway. Out: text on stderr, lines and records in files.
//! Calls no MPI after the start, and does nothing on other ranks; between two intervals a step costs one look at the clock.

mod board;
mod log;
mod outlets;
mod terminal;

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::config::Metrics;
use crate::launch::Job;
use crate::message;
use crate::units::{Second, format_left};
pub use log::{Ending, Epoch, Start};
pub use outlets::Outlets;
use terminal::Terminal;

/// Interval at which a bar's figures are renewed.
const BAR: Duration = Duration::from_secs(1);
/// Frames per second of a bar, at most, and time after which it is drawn again whatever happens.
const FRAMES: u8 = 4;
const TICK: Duration = Duration::from_millis(500);

/// View of the work under way, and its log.
pub struct Live {
    view: View,
    /// Interval of lines and of the log; `None`: neither.
    every: Option<Duration>,
    /// Moment of the next interval; `None`: there is none.
    next: Option<Instant>,
    outlets: Outlets,
    /// Words before the name of every part: the training of a study.
    context: String,
    part: Part,
    work: Work,
    /// Time of the last interval, or of the part's beginning.
    shown: Instant,
    /// What the log has not had yet.
    unlogged: Measured,
    logged: Instant,
}

enum View {
    /// None: another rank than the first, or `metrics.progress_seconds = 0`.
    Hidden,
    /// Bar on a terminal, of the part that is under way.
    Bar(Terminal, Option<ProgressBar>),
    /// Lines of the log on stderr.
    Lines,
}

/// Part of the work that has a count of its own: an epoch, a test, a calibration.
#[derive(Default)]
struct Part {
    name: String,
    done: usize,
    of: usize,
}

/// Work of the command, in units that take equally long.
struct Work {
    started: Instant,
    done: f64,
    left: f64,
    /// Work after that.
    later: f64,
    /// Units of one step.
    per_step: f64,
}

impl Work {
    fn new() -> Work {
        Work { started: Instant::now(), done: 0.0, left: 0.0, later: 0.0, per_step: 1.0 }
    }
}

/// Sums over the steps of an interval on rank 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Optimizer steps.
    pub steps: usize,
    /// Samples over all ranks.
    pub samples: usize,
    /// Sum of the mean loss of a step's samples, times these samples.
    pub loss_sum: f64,
    /// Number of samples in `loss_sum`.
    pub loss_samples: usize,
    /// Sum of the steps' times.
    pub step: Second,
    /// Sum of the steps' exposed communication.
    pub exposed: Second,
    /// Wall time.
    pub seconds: Second,
}

impl Measured {
    /// Adds another interval.
    pub fn add(&mut self, other: &Measured) {
        self.steps += other.steps;
        self.samples += other.samples;
        self.loss_sum += other.loss_sum;
        self.loss_samples += other.loss_samples;
        self.step += other.step;
        self.exposed += other.exposed;
        self.seconds += other.seconds;
    }
}

/// Where a training is at the end of an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Epoch under way, from 0.
    pub epoch: usize,
    /// Optimizer steps done, over all epochs.
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Number of ranks.
    pub ranks: usize,
}

/// Interval of a training, as the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Epoch under way, from 0.
    pub epoch: usize,
    /// Optimizer steps done, over all epochs.
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// Mean loss of the interval's samples on rank 0.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Samples of all ranks per second of wall time.
    pub images_per_second: f64,
    /// Exposed communication as a share of the steps' time on rank 0; NaN for one rank.
    pub exposed_share: f64,
    /// Wall time until the end of the training, at the rate so far; NaN at the start.
    pub seconds_left: Second,
}

impl Interval {
    fn new(place: &Place, measured: &Measured, seconds_left: Option<Second>) -> Interval {
        let &Place { epoch, step, steps, lr, ranks } = place;
        Interval {
            epoch,
            step,
            steps,
            loss: measured.loss_sum / measured.loss_samples as f64,
            lr,
            images_per_second: measured.samples as f64 / measured.seconds,
            exposed_share: if ranks > 1 { measured.exposed / measured.step } else { f64::NAN },
            seconds_left: seconds_left.unwrap_or(f64::NAN),
        }
    }

    /// Loss, speed and exposed share in words.
    fn text(&self) -> String {
        let mut text = format!("loss {:.4} | {:.0} samples/s", self.loss, self.images_per_second);
        if self.exposed_share.is_finite() {
            text += &format!(" | exposed {:.1} %", 100.0 * self.exposed_share);
        }
        text
    }
}

impl Live {
    /// No view and no log.
    pub fn hidden() -> Live {
        let now = Instant::now();
        Live {
            view: View::Hidden,
            every: None,
            next: None,
            outlets: Outlets::none(),
            context: String::new(),
            part: Part::default(),
            work: Work::new(),
            shown: now,
            unlogged: Measured::default(),
            logged: now,
        }
    }

    /// The view of rank 0 as configured, with what `outlets` has been opened; hidden on the other ranks.
    pub fn new(job: &Job, metrics: &Metrics, outlets: Outlets) -> Live {
        if !job.is_root() {
            return Live::hidden();
        }
        let every = Duration::try_from_secs_f64(metrics.progress_seconds).unwrap_or(Duration::MAX);
        let every = Some(every).filter(|every| !every.is_zero());
        let view = match Terminal::find() {
            Some(terminal) => View::Bar(terminal, None),
            None if every.is_some() => View::Lines,
            None => View::Hidden,
        };
        let mut live = Live::hidden();
        (live.view, live.every, live.outlets) = (view, every, outlets);
        live.wait_for_next(Instant::now());
        live
    }

    /// Begins work whose end is to be foretold: from here on time counts, and none of the work is done.
    pub fn begin_work(&mut self) {
        self.work = Work::new();
    }

    /// Sets the work that is left and how much of it a step is, in units that take equally long.
    pub fn set_left(&mut self, units: f64, per_step: f64) {
        (self.work.left, self.work.per_step) = (units, per_step);
    }

    /// Sets the work that comes after what is left now, in the same units.
    pub fn set_later(&mut self, units: f64) {
        self.work.later = units;
    }

    /// Sets the words before the name of every part.
    pub fn set_context(&mut self, context: String) {
        self.context = context;
    }

    /// Begins a part of `of` steps, `done` of which were done before.
    pub fn begin(&mut self, name: &str, done: usize, of: usize) {
        if self.next.is_none() && self.outlets.are_none() {
            return;
        }
        let separator = if self.context.is_empty() { "" } else { ", " };
        self.part = Part { name: format!("{}{separator}{name}", self.context), done, of };
        self.shown = Instant::now();
        self.clear_bar();
        if let View::Bar(terminal, bar) = &mut self.view {
            message::set_bar(true);
            *bar = Some(begin_bar(terminal, &self.part));
        }
    }

    /// Begins a part of `of` steps that is all of the work whose end can be foretold.
    pub fn begin_whole(&mut self, name: &str, of: usize) {
        self.begin_work();
        self.set_left(of as f64, 1.0);
        self.begin(name, 0, of);
    }

    /// Counts a step of the part and of the work. Returns whether an interval has ended: then [`interval`](Self::interval) or
    /// [`show`](Self::show) is due.
    pub fn advance(&mut self) -> bool {
        if self.next.is_none() {
            return false;
        }
        self.work.done += self.work.per_step;
        self.work.left -= self.work.per_step;
        self.count();
        self.is_due()
    }

    /// Counts a step of a part that is no work of its own, a test's, and shows it if an interval has ended.
    pub fn advance_part(&mut self) {
        if self.next.is_some() {
            self.count();
            self.show(String::new);
        }
    }

    fn count(&mut self) {
        self.part.done += 1;
        if let View::Bar(_, Some(bar)) = &self.view {
            bar.set_position(self.part.done as u64);
        }
    }

    /// Counts a step as [`advance`](Self::advance) does, and shows `text` beside it if an interval has ended.
    pub fn step(&mut self, text: impl FnOnce() -> String) {
        if self.advance() {
            self.show(text);
        }
    }

    /// Whether an interval has ended.
    pub fn is_due(&self) -> bool {
        self.next.is_some_and(|next| Instant::now() >= next)
    }

    /// Whether there is a log that wants what was measured since the last interval, at the end of a part.
    pub fn wants_rest(&self) -> bool {
        !self.outlets.are_none()
    }

    /// Shows `text` beside the place in the part, if an interval has ended.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        if self.is_due() {
            self.print(&text());
            self.wait_for_next(Instant::now());
        }
    }

    /// Shows and logs the interval of a training that ends here, of which `measured` has everything but the wall time; with `rest`
    /// it is the end of an epoch's training, which is logged whether an interval has ended or not.
    pub fn interval(&mut self, place: &Place, mut measured: Measured, rest: bool) {
        let (now, left) = (Instant::now(), self.left());
        measured.seconds = (now - self.shown).as_secs_f64();
        self.shown = now;
        self.unlogged.add(&measured);
        let is_logged = self.every.is_some_and(|every| now - self.logged >= every);
        if (is_logged || rest) && self.unlogged.steps > 0 {
            self.outlets.interval(&Interval::new(place, &self.unlogged, left));
            (self.unlogged, self.logged) = (Measured::default(), now);
        }
        if self.is_due() && measured.steps > 0 {
            self.print(&Interval::new(place, &measured, left).text());
            self.wait_for_next(now);
        }
    }

    /// Begins the log of a training.
    pub fn start(&mut self, start: &Start) {
        self.outlets.start(start);
    }

    /// Logs an epoch that has ended.
    pub fn epoch(&mut self, epoch: &Epoch) {
        self.outlets.epoch(epoch);
        self.logged = Instant::now();
    }

    /// Logs how the training has ended.
    pub fn end(&mut self, step: usize, ending: Ending) {
        self.outlets.end(step, ending);
    }

    /// Ends the part: a bar vanishes, and what is printed from now on begins on a line of its own, on stdout too.
    pub fn clear(&mut self) {
        if self.clear_bar() {
            message::settle();
        }
    }

    /// Takes the bar off the terminal; false if there is none.
    fn clear_bar(&mut self) -> bool {
        let View::Bar(_, bar) = &mut self.view else { return false };
        let Some(bar) = bar.take() else { return false };
        bar.finish_and_clear();
        message::set_bar(false);
        true
    }

    /// Wall time until the work is done, at the rate so far; `None` before the first step.
    pub fn left(&self) -> Option<Second> {
        let Work { started, done, left, later, .. } = self.work;
        (done > 0.0).then(|| started.elapsed().as_secs_f64() / done * (left.max(0.0) + later))
    }

    /// Begins a new interval: another line says where the work is.
    pub fn restart_interval(&mut self) {
        self.wait_for_next(Instant::now());
    }

    fn wait_for_next(&mut self, now: Instant) {
        let every = match &self.view {
            View::Bar(..) => Some(self.every.map_or(BAR, |every| every.min(BAR))),
            View::Lines => self.every,
            View::Hidden => None,
        };
        self.next = every.and_then(|every| now.checked_add(every));
    }

    fn print(&self, text: &str) {
        let left = self.left().map_or_else(String::new, |left| format!("{} left", format_left(left)));
        let joined = |texts: [&str; 2]| {
            let told = texts.into_iter().filter(|text| !text.is_empty());
            told.map(|text| format!(" | {text}")).collect::<String>()
        };
        match &self.view {
            // The end of a bar's line is cut where the terminal is narrow.
            View::Bar(_, bar) => bar.iter().for_each(|bar| bar.set_message(joined([&left, text]))),
            View::Lines => {
                let Part { name, done, of } = &self.part;
                ::log::info!("{name} {done}/{of}{}", joined([text, &left]));
            }
            View::Hidden => {}
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.clear(); // after an error: its message begins on a line of its own
    }
}

/// Draws the bar of a part on `terminal`. What does not fit into the line is cut.
fn begin_bar(terminal: &Terminal, part: &Part) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:20}] {pos}/{len}{wide_msg}");
    let style = style.expect("the template is valid").progress_chars("=> ");
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.of_part()), FRAMES);
    let bar = ProgressBar::with_draw_target(Some(part.of as u64), target).with_style(style);
    let bar = bar.with_prefix(part.name.clone()).with_position(part.done as u64);
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_the_mean_over_its_steps() {
        let mut all = Measured::default();
        let one =
            Measured { steps: 1, samples: 8, loss_sum: 8.0, loss_samples: 4, step: 0.5, exposed: 0.1, seconds: 1.0 };
        let two =
            Measured { steps: 3, samples: 24, loss_sum: 12.0, loss_samples: 12, step: 1.5, exposed: 0.1, seconds: 3.0 };
        all.add(&one);
        all.add(&two);
        let place = Place { epoch: 0, step: 4, steps: 10, lr: 0.1, ranks: 2 };
        let interval = Interval::new(&place, &all, None);
        assert_eq!((interval.loss, interval.images_per_second, interval.exposed_share), (1.25, 8.0, 0.1));
        assert!(interval.seconds_left.is_nan());
        assert_eq!(interval.text(), "loss 1.2500 | 8 samples/s | exposed 10.0 %");
        let alone = Interval::new(&Place { ranks: 1, ..place }, &all, Some(3.0));
        assert_eq!(alone.text(), "loss 1.2500 | 8 samples/s");
    }

    #[test]
    fn what_is_hidden_is_never_due_and_counts_nothing() {
        let mut live = Live::hidden();
        live.begin("epoch 1/2, step", 0, 10);
        assert!(!live.advance() && !live.is_due() && !live.wants_rest());
        live.show(|| unreachable!("it is not due"));
        assert_eq!(live.left(), None);
    }
}
