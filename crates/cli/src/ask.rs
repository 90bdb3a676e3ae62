//! Questions at the terminal, before something that can not be undone.

use std::io::IsTerminal as _;

use crate::failure::{Failure, Result};

/// Whether there is somebody to answer.
pub(crate) fn somebody() -> bool {
    std::io::stdin().is_terminal()
}

/// Goes on if the person says yes, or said it already with `--yes`.
///
/// # Errors
/// A usage error when there is nobody to ask, or when the answer is no.
pub(crate) fn sure(yes: bool, question: &str) -> Result {
    if yes {
        return Ok(());
    }
    if !somebody() {
        return Err(Failure::Usage(format!("{question} Nobody is here to answer: add --yes to go ahead")));
    }
    match dialoguer::Confirm::new().with_prompt(question).default(false).interact() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Usage("nothing was done".to_owned())),
        Err(dialoguer::Error::IO(source)) => Err(Failure::io("can not ask", source)),
    }
}
