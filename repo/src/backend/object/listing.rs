//! A page of an S3 listing with the storage class of each object, as XML.
//!
//! ```text
//!   <Contents><Key>..</Key><Size>..</Size><StorageClass>..</StorageClass>..</Contents> ..
//!   <IsTruncated>true</IsTruncated><NextContinuationToken>..</NextContinuationToken>
//! ```
//!
//! Not here: asking for it ([`super::archive`]); listings in which classes do not matter, which are OpenDAL's. What holds: pure; foreign
//! bytes give a page or an error and never a panic; a page that says that there is more names where; an object without a class is of
//! the standard one.

use super::xml::{element, is_truncated, take_apart, unescaped};
use crate::error::{Error, Result};

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) key: String,
    /// Bytes.
    pub(super) size: u64,
    /// Empty: the standard one.
    pub(super) class: String,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) lines: Vec<Line>,
    /// What the next page is asked for with.
    pub(super) next: Option<String>,
}

impl Page {
    /// Reads a page.
    pub(super) fn parse(body: &[u8]) -> Result<Page> {
        let wrong = || Error::corrupt("the store's listing cannot be read");
        let text = std::str::from_utf8(body).map_err(|_| wrong())?;
        let (entries, around) = take_apart(text, "ListBucketResult", &["Contents"]).ok_or_else(wrong)?;
        let mut page = Page::default();
        for (_, entry) in entries {
            page.lines.push(Line {
                key: unescaped(element(entry, "Key").ok_or_else(wrong)?),
                size: element(entry, "Size").and_then(|size| size.trim().parse().ok()).ok_or_else(wrong)?,
                class: element(entry, "StorageClass").unwrap_or_default().trim().to_owned(),
            });
        }
        if is_truncated(&around) {
            let token = element(&around, "NextContinuationToken").map(unescaped).filter(|token| !token.is_empty());
            page.next = Some(token.ok_or_else(wrong)?);
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix><KeyCount>2</KeyCount>
<NextContinuationToken>1/&amp;=</NextContinuationToken><IsTruncated>true</IsTruncated><Contents><Key>p/a&amp;b</Key>
<Size>12</Size><StorageClass>DEEP_ARCHIVE</StorageClass></Contents><Contents><Key>p/c</Key><Size>3</Size></Contents>
</ListBucketResult>"#;

    #[test]
    fn pages_are_read() {
        let page = Page::parse(PAGE.as_bytes()).unwrap();
        let line = |key: &str, size, class: &str| Line { key: key.into(), size, class: class.into() };
        assert_eq!(page.lines, [line("p/a&b", 12, "DEEP_ARCHIVE"), line("p/c", 3, "")]);
        assert_eq!(page.next.as_deref(), Some("1/&="));
        let last = Page::parse(PAGE.replace("true</IsTr", "false</IsTr").as_bytes()).unwrap();
        assert_eq!((last.lines.len(), last.next), (2, None));
        assert_eq!(Page::parse(b"<ListBucketResult></ListBucketResult>").unwrap(), Page::default());
    }

    #[test]
    fn whatever_comes_is_a_page_or_an_error() {
        for cut in 0..PAGE.len() {
            let _ = Page::parse(&PAGE.as_bytes()[..cut]);
            let mut broken = PAGE.as_bytes().to_vec();
            broken[cut] ^= 0x41;
            let _ = Page::parse(&broken);
        }
        for wrong in ["", "<html>", "<ListBucketResult><Contents><Key>a</Key></Contents>"] {
            assert!(Page::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Page::parse(PAGE.replace("NextContinuationToken", "Nobody").as_bytes()).is_err());
        assert!(Page::parse(PAGE.replace("<Size>12<", "<Size>-1<").as_bytes()).is_err());
    }
}
