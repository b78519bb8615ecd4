//! Remedies for an error that the server answered before it carried anything out.

use super::config::Node;
use crate::provider::redis::error::Refusal;

/// Measure after which the same request can succeed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Load the script.
    Load,
    /// Wait.
    Wait,
    /// Look for the primary.
    Seek,
    /// Connect to the new owner of the slot.
    Move(Node),
    /// Ask this server once: the slot is on its way there.
    Ask(Node),
}

impl Remedy {
    /// Returns the remedy for an error of this server, if there is one.
    pub(super) fn of(refusal: &Refusal, by: &Node) -> Option<Self> {
        // Behind the number of the slot.
        let target = || Node::told(refusal.text().split_whitespace().nth(1)?, by);
        match refusal.code() {
            "NOSCRIPT" => Some(Self::Load),
            "LOADING" | "TRYAGAIN" | "CLUSTERDOWN" | "BUSY" => Some(Self::Wait),
            "READONLY" | "MASTERDOWN" => Some(Self::Seek),
            "MOVED" => Some(target().map_or(Self::Seek, Self::Move)),
            "ASK" => Some(target().map_or(Self::Wait, Self::Ask)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_carried_out_has_a_remedy() {
        let by = Node::tcp("here", 1);
        let there = Node::tcp("10.0.0.7", 7_001);
        for (code, text, expected) in [
            ("NOSCRIPT", "No matching script.", Some(Remedy::Load)),
            ("LOADING", "Redis is loading the dataset in memory", Some(Remedy::Wait)),
            ("BUSY", "Redis is busy running a script.", Some(Remedy::Wait)),
            ("READONLY", "You can't write against a read only replica.", Some(Remedy::Seek)),
            ("MOVED", "3999 10.0.0.7:7001", Some(Remedy::Move(there.clone()))),
            ("MOVED", "3999 :7001", Some(Remedy::Move(Node::tcp("here", 7_001)))),
            ("MOVED", "3999", Some(Remedy::Seek)),
            ("ASK", "3999 10.0.0.7:7001", Some(Remedy::Ask(there))),
            ("OOM", "command not allowed", None),
            ("NOREPLICAS", "Not enough good replicas to write.", None),
            ("ERR", "user_script:1: oops script: 3376dfff, on @user_script:1.", None),
            ("WRONGTYPE", "Operation against a key", None),
        ] {
            assert_eq!(Remedy::of(&Refusal::new(code, text), &by), expected, "{code} {text}");
        }
    }
}
