//! One HTTP request for one page, and its answer. Pure.
//!
//! Not here: sockets, and most of HTTP: no bodies, no second request on a connection. What holds: a head of more than
//! [`MAX_HEAD`] bytes is an answer, too.

/// The longest head of a request, in bytes.
pub(super) const MAX_HEAD: usize = 8 << 10;

/// What a request's head asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// The page, or only what would come with it.
    Page {
        with_body: bool,
    },
    OtherPath,
    OtherMethod,
    NotHttp,
    TooLong,
}

impl Head {
    /// What was received so far asks for; `None` if it may go on.
    pub(super) fn decode(bytes: &[u8]) -> Option<Head> {
        let is_whole = [b"\r\n\r\n".as_slice(), b"\n\n"].iter().any(|end| bytes.windows(end.len()).any(|w| w == *end));
        if !is_whole {
            return (bytes.len() >= MAX_HEAD).then_some(Head::TooLong);
        }
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [method, target, version] = words.as_slice() else { return Some(Head::NotHttp) };
        if !version.starts_with(b"HTTP/1.") {
            return Some(Head::NotHttp);
        }
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        Some(match (*method, path) {
            (b"GET", b"/metrics") => Head::Page { with_body: true },
            (b"HEAD", b"/metrics") => Head::Page { with_body: false },
            (b"GET" | b"HEAD", _) => Head::OtherPath,
            _ => Head::OtherMethod,
        })
    }

    /// The whole answer; `page` is made only if it is asked for.
    pub(super) fn answer(self, page: impl Fn() -> String) -> Vec<u8> {
        let (status, kind, body) = match self {
            Head::Page { .. } => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", page()),
            Head::OtherPath => ("404 Not Found", "text/plain", "there is /metrics only\n".to_owned()),
            Head::OtherMethod => ("405 Method Not Allowed", "text/plain", "GET /metrics only\n".to_owned()),
            Head::NotHttp => ("400 Bad Request", "text/plain", "this is not HTTP/1.1\n".to_owned()),
            Head::TooLong => {
                ("431 Request Header Fields Too Large", "text/plain", "the request is too long\n".to_owned())
            }
        };
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let mut answer = head.into_bytes();
        if self != (Head::Page { with_body: false }) {
            answer.extend_from_slice(body.as_bytes());
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_is_there_and_all_else_is_told_so() {
        for (text, head) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Head::Page { with_body: true }),
            ("GET /metrics?name=x HTTP/1.0\n\n", Head::Page { with_body: true }),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Head::Page { with_body: false }),
            ("GET / HTTP/1.1\r\n\r\n", Head::OtherPath),
            ("POST /metrics HTTP/1.1\r\n\r\n", Head::OtherMethod),
            ("GET /metrics\r\n\r\n", Head::NotHttp),
            ("GET /metrics HTTP/2\r\n\r\n", Head::NotHttp),
            ("\r\n\r\n", Head::NotHttp),
        ] {
            assert_eq!(Head::decode(text.as_bytes()), Some(head), "{text:?}");
            let end = text.len() - 1;
            assert_eq!(Head::decode(&text.as_bytes()[..end]), None, "{text:?}");
        }
        assert_eq!(Head::decode(&[b'x'; MAX_HEAD]), Some(Head::TooLong));
        assert_eq!(Head::decode(&[b'x'; MAX_HEAD - 1]), None);
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let text = |head: Head| String::from_utf8(head.answer(|| "a 1\n".to_owned())).unwrap();
        let page = text(Head::Page { with_body: true });
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\na 1\n"), "{page}");
        assert!(page.contains("Content-Length: 4\r\n") && page.contains("version=0.0.4"), "{page}");
        let head = text(Head::Page { with_body: false });
        assert!(head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(text(Head::OtherPath).starts_with("HTTP/1.1 404"));
        assert!(text(Head::OtherMethod).starts_with("HTTP/1.1 405"));
    }
}
