//! The filter of a command: an argument or `--filter`.

/// A filter of subjects.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Subject filter; `*` matches one token, `>` the rest [default: all]
    #[arg(value_name = "FILTER")]
    positional: Option<String>,
    /// The same as the argument
    #[arg(long = "filter", value_name = "FILTER", conflicts_with = "positional")]
    option: Option<String>,
}

impl Filter {
    pub(crate) fn get(&self) -> Option<&str> {
        self.option.as_deref().or(self.positional.as_deref())
    }
}
