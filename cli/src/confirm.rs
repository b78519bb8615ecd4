//! Confirmation before data is deleted or a consumer is moved.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::failure::{Failure, Outcome};
use crate::layout;
use crate::text;

/// The option that answers the question.
#[derive(Debug, clap::Args)]
pub(crate) struct Confirmation {
    /// Skip the confirmation. Required without a terminal
    #[arg(long, short)]
    pub(crate) yes: bool,
}

impl Confirmation {
    /// Asks for confirmation of a deletion. `loss` names the deleted data, as in "this deletes 3 events".
    pub(crate) fn ask(&self, loss: &str) -> Outcome {
        self.ask_about(&format!("{loss}; this cannot be undone"))
    }

    /// Asks for confirmation on the terminal. `effect` is a sentence without its full stop.
    pub(crate) fn ask_about(&self, effect: &str) -> Outcome {
        if self.yes {
            return Ok(());
        }
        let effect = text::line(effect);
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::Usage(format!("{effect}. Confirm with --yes")));
        }
        let question = format!("{effect}. Continue? [y/N] ");
        let width = layout::stderr_width().unwrap_or(layout::PIPED);
        let mut stderr = io::stderr();
        write!(stderr, "{} ", layout::wrap(&question, width, ""))?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::Other("nothing was changed: not confirmed".to_owned())),
        }
    }
}
