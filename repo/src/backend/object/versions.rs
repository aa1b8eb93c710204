//! A page of an S3 listing of versions, as XML.
//!
//! ```text
//!   <DeleteMarker><Key>..</Key><VersionId>..</VersionId>..</DeleteMarker><Version>..</Version> ..      the newest of a key first
//!   <IsTruncated>true</IsTruncated><NextKeyMarker>..</NextKeyMarker><NextVersionIdMarker>..</NextVersionIdMarker>
//! ```
//!
//! Not here: asking for it ([`super::object_lock`]). What holds: pure; foreign bytes give a page or an error and never a panic; a page
//! that says that there is more names where.

use super::xml::{element, is_truncated, take_apart, unescaped};
use crate::error::{Error, Result};

/// One version of an object, or a delete marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) key: String,
    pub(super) id: String,
    pub(super) is_marker: bool,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// By key, and of one key the newest first.
    pub(super) versions: Vec<Version>,
    /// Key and version after which the next page begins.
    pub(super) next: Option<(String, String)>,
}

impl Page {
    /// Reads a page.
    pub(super) fn parse(body: &[u8]) -> Result<Page> {
        let wrong = || Error::corrupt("the store's listing of versions cannot be read");
        let text = std::str::from_utf8(body).map_err(|_| wrong())?;
        let (entries, around) =
            take_apart(text, "ListVersionsResult", &["Version", "DeleteMarker"]).ok_or_else(wrong)?;
        let mut page = Page::default();
        for (which, entry) in entries {
            let field = |name| element(entry, name).map(unescaped).ok_or_else(wrong);
            page.versions.push(Version { key: field("Key")?, id: field("VersionId")?, is_marker: which == 1 });
        }
        if is_truncated(&around) {
            let field = |name| element(&around, name).map(unescaped).filter(|text| !text.is_empty()).ok_or_else(wrong);
            page.next = Some((field("NextKeyMarker")?, field("NextVersionIdMarker")?));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix><MaxKeys>2</MaxKeys>
<IsTruncated>true</IsTruncated><DeleteMarker><Key>p&amp;/a</Key><VersionId>2</VersionId><IsLatest>true</IsLatest></DeleteMarker><Version>
<Key>p&amp;/a</Key><VersionId>1</VersionId><IsLatest>false</IsLatest><ETag>&#34;5d&#34;</ETag><Owner><ID>x</ID></Owner></Version>
<NextKeyMarker>p&#x26;/a</NextKeyMarker><NextVersionIdMarker>1</NextVersionIdMarker></ListVersionsResult>"#;

    fn version(id: &str, is_marker: bool) -> Version {
        Version { key: "p&/a".into(), id: id.into(), is_marker }
    }

    #[test]
    fn pages_are_read() {
        let page = Page::parse(PAGE.as_bytes()).unwrap();
        assert_eq!(page.versions, [version("2", true), version("1", false)]);
        assert_eq!(page.next, Some(("p&/a".into(), "1".into())));
        let last = Page::parse(PAGE.replace("true</IsTr", "false</IsTr").as_bytes()).unwrap();
        assert_eq!((last.versions.len(), last.next), (2, None));
        let empty = Page::parse(b"<ListVersionsResult></ListVersionsResult>").unwrap();
        assert_eq!(empty, Page::default());
    }

    #[test]
    fn whatever_comes_is_a_page_or_an_error() {
        for cut in 0..PAGE.len() {
            let _ = Page::parse(&PAGE.as_bytes()[..cut]);
            let mut broken = PAGE.as_bytes().to_vec();
            broken[cut] ^= 0x41;
            let _ = Page::parse(&broken);
        }
        for wrong in ["", "<html>", "<ListVersionsResult><Version><Key>a</Key></Version></ListVersionsResult>"] {
            assert!(Page::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let endless = PAGE.replace("NextKeyMarker", "Nobody");
        assert!(Page::parse(endless.as_bytes()).is_err());
    }
}
