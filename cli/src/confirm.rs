//! Confirmation before data is deleted.

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
    /// Asks for confirmation on the terminal. `loss` names the deleted data, as in "purging … deletes 3 events".
    pub(crate) fn ask(&self, loss: &str) -> Outcome {
        if self.yes {
            return Ok(());
        }
        let loss = text::line(loss);
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::Usage(format!("{loss}; this cannot be undone. Confirm with --yes")));
        }
        let question = format!("{loss}; this cannot be undone. Continue? [y/N] ");
        let width = layout::stderr_width().unwrap_or(layout::PIPED);
        let mut stderr = io::stderr();
        write!(stderr, "{} ", layout::wrap(&question, width, ""))?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Failure::Other("nothing was deleted: not confirmed".to_owned())),
        }
    }
}
