//! As much of XML as S3's answers take: elements without attributes, and text.
//!
//! Not here: what the elements mean. What holds: pure; foreign bytes give text or nothing, and never a panic.

/// What stands between `<name>` and `</name>`.
pub(super) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = text.split_once(&format!("<{name}>"))?;
    after.split_once(&format!("</{name}>")).map(|(inner, _)| inner)
}

/// A page of a listing taken apart: the elements with these `names` after `root` begins, in order, each with the place of its name among
/// them; and what stands around them, which is about the page as a whole. `None`: it is no such page, or one of them does not end.
pub(super) fn take_apart<'a>(text: &'a str, root: &str, names: &[&str]) -> Option<(Vec<(usize, &'a str)>, String)> {
    let tags: Vec<_> = names.iter().map(|name| (format!("<{name}>"), format!("</{name}>"))).collect();
    let (mut entries, mut around) = (Vec::new(), String::new());
    let mut rest = text.split_once(&format!("<{root}"))?.1;
    loop {
        let found = tags.iter().enumerate().filter_map(|(which, (begin, _))| Some((rest.find(begin.as_str())?, which)));
        let Some((at, which)) = found.min() else { break };
        let (begin, end) = tags.get(which)?;
        let (before, entry) = rest.split_at_checked(at)?;
        let (entry, after) = entry.strip_prefix(begin.as_str())?.split_once(end.as_str())?;
        around.push_str(before);
        entries.push((which, entry));
        rest = after;
    }
    around.push_str(rest);
    Some((entries, around))
}

/// Whether a page of a listing says that more follow it.
pub(super) fn is_truncated(page: &str) -> bool {
    element(page, "IsTruncated").is_some_and(|word| word.trim() == "true")
}

/// Text with what XML writes in other ways for certain characters; what is none of these stays as it is.
pub(super) fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let known = after.split_once(';').and_then(|(name, after)| Some((character(name)?, after)));
        rest = match known {
            Some((character, after)) => {
                out.push(character);
                after
            }
            None => {
                out.push('&');
                after
            }
        };
    }
    out.push_str(rest);
    out
}

fn character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_it_stands_for() {
        assert_eq!(unescaped("a&b&;&#xzz;&#65;&lt"), "a&b&;&#xzz;A&lt");
        assert_eq!(unescaped("p&#x26;&quot;&apos;&gt;"), "p&\"'>");
    }

    #[test]
    fn an_element_is_the_first_of_its_name() {
        let text = "<a><b>1</b><b>2</b></a><c></c><d>";
        assert_eq!(
            ["a", "b", "c", "d", "e"].map(|name| element(text, name)),
            [Some("<b>1</b><b>2</b>"), Some("1"), Some(""), None, None]
        );
    }
}
