//! `~/.netrc` as ftp(1) and curl read it: `machine HOST login USER password WORD account WORD`,
//! `default`, `macdef`, comments, quotes.
//!
//! Parsed here and not by a crate: those found keep one login for each host, lose bytes that are
//! not UTF-8, and quote tokens (which may be a password) in their errors.

use crate::ftp::Secret;

/// What the file says of one host and user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) account: Option<Secret>,
}

/// The first entry for `host`, or else the default one, that is for `user` if one is named.
pub(crate) fn find(text: &[u8], host: &str, user: Option<&str>) -> Option<Login> {
    let mut fallback = None;
    for (machine, login) in entries(text) {
        let is_for_user = user.is_none() || login.user.is_none() || login.user.as_deref() == user;
        if !is_for_user {
            continue;
        }
        match machine {
            Some(name) if name.eq_ignore_ascii_case(host.as_bytes()) => return Some(login),
            Some(_) => {}
            None => fallback = fallback.or(Some(login)),
        }
    }
    fallback
}

/// All entries; the default one has no machine.
fn entries(text: &[u8]) -> Vec<(Option<Vec<u8>>, Login)> {
    let mut found: Vec<(Option<Vec<u8>>, Login)> = Vec::new();
    let mut rest = text;
    while let Some(word) = token(&mut rest) {
        match word.as_slice() {
            b"machine" => {
                found.push((Some(token(&mut rest).unwrap_or_default()), Login::default()))
            }
            b"default" => found.push((None, Login::default())),
            b"macdef" => skip_macro(&mut rest),
            key @ (b"login" | b"password" | b"account") => {
                let value = token(&mut rest).unwrap_or_default();
                let Some((_, login)) = found.last_mut() else { continue };
                match key {
                    b"login" => login.user = String::from_utf8(value).ok(),
                    b"password" => login.password = Some(Secret::new(value)),
                    _ => login.account = Some(Secret::new(value)),
                }
            }
            word if word.starts_with(b"#") => skip_line(&mut rest),
            _ => {}
        }
    }
    found
}

/// The next word; in quotes it may hold blanks, and a backslash takes the next byte literally.
fn token(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let start = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let mut bytes = rest.get(start..)?.iter().copied();
    let quoted = rest.get(start) == Some(&b'"');
    if quoted {
        bytes.next();
    }
    let mut word = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' if quoted => break,
            b'\\' if quoted => word.extend(bytes.next()),
            _ if !quoted && byte.is_ascii_whitespace() => {
                // Left for whoever skips to the end of the line.
                let left = bytes.len() + 1;
                *rest = rest.get(rest.len() - left..)?;
                return Some(word);
            }
            _ => word.push(byte),
        }
    }
    let left = bytes.len();
    *rest = rest.get(rest.len() - left..)?;
    Some(word)
}

fn skip_line(rest: &mut &[u8]) {
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    *rest = rest.get(end..).unwrap_or_default();
}

/// A macro ends with an empty line.
fn skip_macro(rest: &mut &[u8]) {
    let end = rest.windows(2).position(|pair| pair == b"\n\n").unwrap_or(rest.len());
    *rest = rest.get(end..).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"# mine\nmachine nas login bob password b0b#1 account acc\n\
        machine nas\n\tlogin eve\n\tpassword \"e v\\\"e\"\nmacdef init\nmachine evil login x password y\n\n\
        machine other password only\ndefault login anonymous password me@home\n";

    fn user_and_password(host: &str, user: Option<&str>) -> Option<(String, String)> {
        let login = find(FILE, host, user)?;
        let password = String::from_utf8(login.password?.expose().to_vec()).unwrap();
        Some((login.user.unwrap_or_default(), password))
    }

    #[test]
    fn the_entry_of_host_and_user_is_found() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(user_and_password("nas", None), pair("bob", "b0b#1"));
        assert_eq!(user_and_password("NAS", Some("eve")), pair("eve", "e v\"e"));
        assert_eq!(user_and_password("nas", Some("mallory")), None);
        assert_eq!(user_and_password("other", Some("bob")), pair("", "only"));
        assert_eq!(user_and_password("unknown", None), pair("anonymous", "me@home"));
        assert_eq!(user_and_password("evil", None), pair("anonymous", "me@home"));
        assert_eq!(find(FILE, "nas", Some("bob")).unwrap().account.unwrap().expose(), b"acc");
    }

    #[test]
    fn odd_files_do_no_harm() {
        for text in ["", "machine", "machine nas login", "login x", "\"", "machine \"nas", "\\"] {
            let _ = find(text.as_bytes(), "nas", None);
        }
    }
}
