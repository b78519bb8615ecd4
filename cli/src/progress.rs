//! Progress on stderr: a bar on a terminal, nothing for a file, a pipe or a dumb terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::layout;

/// The progress of a command.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Shows progress through an input in bytes. Without a total it shows the bytes read and the rate.
    pub(crate) fn of_bytes(total: Option<u64>) -> Self {
        match total {
            Some(_) => {
                Self::new(total, "{wide_bar} {percent:>3}%  {msg}  {decimal_bytes_per_sec}  {eta} left")
            }
            None => Self::of_events(None),
        }
    }

    /// Shows progress through this number of events.
    pub(crate) fn of_events(total: Option<u64>) -> Self {
        match total {
            Some(_) => Self::new(
                total,
                "{wide_bar} {percent:>3}%  {human_pos} of {human_len} events  {per_sec:0}  {eta} left",
            ),
            None => Self::new(None, "{spinner} {msg}  {per_sec:0}"),
        }
    }

    fn new(total: Option<u64>, template: &str) -> Self {
        let target =
            if layout::is_dumb() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(total, target);
        Self(match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            // The templates above are valid, and without a style there is still a bar.
            Err(_) => bar,
        })
    }

    pub(crate) fn set(&self, position: u64) {
        self.0.set_position(position);
    }

    pub(crate) fn say(&self, message: String) {
        self.0.set_message(message);
    }
}

impl Drop for Progress {
    /// Removes the bar, also when the command fails.
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
