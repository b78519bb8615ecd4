//! Header fields with several lines: a list may have several, all other fields only one (RFC 9110, 5.3).

#[cfg(any(feature = "webhook", test))]
use std::borrow::Cow;

/// Reason why a field cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// A field that may occur only once occurs twice; readers could take different values.
    Twice,
    NotText,
}

impl Unreadable {
    /// Returns the rule that the field breaks.
    pub(crate) fn rule(self) -> &'static str {
        match self {
            Self::Twice => "is given twice",
            Self::NotText => "must be visible ASCII",
        }
    }
}

/// Returns the value of a field that may occur only once, without white space around it.
pub(crate) fn single<'a, V: AsRef<[u8]> + ?Sized + 'a>(
    lines: impl IntoIterator<Item = &'a V>,
) -> Result<Option<&'a str>, Unreadable> {
    let mut lines = lines.into_iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(Unreadable::Twice);
    }
    text(line.as_ref()).map(Some)
}

/// Returns the value of a list field: its lines in order, joined into one. `None` if there is no line.
#[cfg(any(feature = "webhook", test))]
pub(crate) fn list<'a, V: AsRef<[u8]> + ?Sized + 'a>(
    lines: impl IntoIterator<Item = &'a V>,
) -> Result<Option<Cow<'a, str>>, Unreadable> {
    let mut lines = lines.into_iter().map(|line| text(line.as_ref()));
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    lines
        .try_fold(Cow::Borrowed(first), |mut list, line| {
            let text = list.to_mut();
            text.push(',');
            text.push_str(line?);
            Ok(list)
        })
        .map(Some)
}

fn text(line: &[u8]) -> Result<&str, Unreadable> {
    let is_visible = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e);
    let text = std::str::from_utf8(line).ok().filter(|_| line.iter().all(is_visible));
    text.map(|text| text.trim_matches([' ', '\t'])).ok_or(Unreadable::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_once_is_read_once() {
        assert_eq!(single::<str>([]), Ok(None));
        assert_eq!(single([" a, b\t"]), Ok(Some("a, b")));
        assert_eq!(single([""]), Ok(Some("")));
        assert_eq!(single(["a", "a"]), Err(Unreadable::Twice));
        for line in [&b"\xff"[..], b"a\0b", b"a\nb", "é".as_bytes(), b"\x7f"] {
            assert_eq!(single([line]), Err(Unreadable::NotText));
            assert_eq!(list([&b"a"[..], line]), Err(Unreadable::NotText));
        }
    }

    #[test]
    fn the_lines_of_a_list_are_one_list() {
        assert_eq!(list::<str>([]), Ok(None));
        assert_eq!(list(["a=1"]).unwrap().unwrap(), "a=1");
        assert_eq!(list(["a=1", "", " b=2 , c=3\t"]).unwrap().unwrap(), "a=1,,b=2 , c=3");
    }
}
