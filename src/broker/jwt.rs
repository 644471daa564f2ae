//! The one thing we read in a user JWT: until when it is good. The server refuses one that has expired
//! without saying why.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::Deserialize;

/// When a JWT expires. `None` if it never does, or cannot be read.
pub(super) fn expiry(jwt: &str) -> Option<DateTime<Utc>> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(default)]
        exp: i64,
    }
    let claims = jwt.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let Claims { exp } = serde_json::from_slice(&claims).ok()?;
    DateTime::from_timestamp(exp, 0).filter(|_| exp != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn reads_when_a_jwt_expires() {
        let cases = [
            (jwt(r#"{"exp":1700000000,"sub":"U"}"#), Some(1_700_000_000)),
            (jwt(r#"{"sub":"U"}"#), None),
            (jwt(r#"{"exp":0}"#), None),
            (jwt(r#"{"exp":"soon"}"#), None),
            ("rubbish".into(), None),
            ("a.!.c".into(), None),
        ];
        for (jwt, expected) in cases {
            assert_eq!(expiry(&jwt).map(|at| at.timestamp()), expected, "{jwt}");
        }
    }
}
