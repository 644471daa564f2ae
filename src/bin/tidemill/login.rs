//! Who we are to NATS, of the many ways there are to say it.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::str::FromStr;

use clap::Args;
use tidemill::ConnectOptions;

use crate::connect::{needs, said};
use crate::exit::UsageError;

/// Text that may be secret and that `Debug` does not show.
#[derive(Clone)]
pub(crate) struct Given(String);

impl Given {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Given {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl AsRef<OsStr> for Given {
    fn as_ref(&self) -> &OsStr {
        self.0.as_ref()
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where the seed of the user JWT is in the environment.
pub(crate) const SEED_VARIABLE: &str = "NATS_SEED";

/// The ways to authenticate.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Login {
    /// User name (or a token, without a password)
    #[arg(long, global = true, env = "NATS_USER", hide_env_values = true)]
    user: Option<Given>,
    /// Password
    #[arg(long, global = true, env = "NATS_PASSWORD", hide_env_values = true)]
    password: Option<Given>,
    /// Token
    #[arg(long, global = true, env = "NATS_TOKEN", hide_env_values = true)]
    token: Option<Given>,
    /// Credentials file
    #[arg(long, global = true, env = "NATS_CREDS", value_name = "FILE")]
    creds: Option<OsString>,
    /// User nkey: a seed or a file with one
    #[arg(
        long,
        global = true,
        env = "NATS_NKEY",
        value_name = "SEED|FILE",
        hide_env_values = true
    )]
    nkey: Option<Given>,
    /// User JWT; needs --seed
    #[arg(long, global = true, env = "NATS_JWT", hide_env_values = true)]
    jwt: Option<Given>,
    /// Seed of the user JWT, or a file with it
    #[arg(
        long,
        global = true,
        env = SEED_VARIABLE,
        value_name = "SEED|FILE",
        hide_env_values = true
    )]
    seed: Option<Given>,
}

/// One way to authenticate, with the values it takes.
#[derive(Debug)]
enum Way<'a> {
    User(&'a Given),
    Creds(&'a OsStr),
    Jwt(&'a Given),
    Nkey(&'a Given),
    Token(&'a Given),
}

impl Login {
    /// The same for a command that has a `--seed` of its own: that of the user JWT is the
    /// environment's.
    pub(crate) fn with_seed_of_environment(mut self) -> Self {
        self.seed = std::env::var(SEED_VARIABLE).ok().map(Given);
        self
    }

    /// Authenticates by what was typed, else by what the server's URL says, else by the environment,
    /// else as the options have it. Of several ways that were given alike, the first is used in the
    /// order of the `nats` command line.
    pub(crate) fn apply(
        &self,
        options: ConnectOptions,
        url_has_login: bool,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<ConnectOptions, UsageError> {
        let (mut typed, mut inherited) = (None, None);
        for (name, way) in self.ways() {
            let slot = if way.is(environment(name)) { &mut inherited } else { &mut typed };
            slot.get_or_insert(way);
        }
        let inherited = inherited.filter(|_| !url_has_login);
        match typed.or(inherited) {
            Some(way) => self.by(way, options),
            None if url_has_login => Ok(options),
            None if said(self.password.as_ref()).is_some() => {
                Err(needs("--password (NATS_PASSWORD)", "--user (NATS_USER)"))
            }
            None if said(self.seed.as_ref()).is_some() => {
                Err(needs("--seed (NATS_SEED)", "--jwt (NATS_JWT)"))
            }
            None => Ok(options),
        }
    }

    /// What was given, each with the name that it has in the environment.
    fn ways(&self) -> impl Iterator<Item = (&'static str, Way<'_>)> {
        [
            ("NATS_USER", said(self.user.as_ref()).map(Way::User)),
            ("NATS_CREDS", said(self.creds.as_ref()).map(|file| Way::Creds(file))),
            ("NATS_JWT", said(self.jwt.as_ref()).map(Way::Jwt)),
            ("NATS_NKEY", said(self.nkey.as_ref()).map(Way::Nkey)),
            ("NATS_TOKEN", said(self.token.as_ref()).map(Way::Token)),
        ]
        .into_iter()
        .filter_map(|(name, way)| Some((name, way?)))
    }

    fn by(&self, way: Way<'_>, options: ConnectOptions) -> Result<ConnectOptions, UsageError> {
        Ok(match way {
            Way::User(user) => match said(self.password.as_ref()) {
                Some(password) => options.user_password(user.reveal(), password.reveal()),
                None => options.token(user.reveal()),
            },
            Way::Creds(file) => options.creds_file(file),
            Way::Jwt(jwt) => match said(self.seed.as_ref()) {
                Some(seed) => options.jwt(jwt.reveal(), seed.reveal()),
                None => return Err(needs("--jwt (NATS_JWT)", "--seed (NATS_SEED)")),
            },
            Way::Nkey(nkey) => options.nkey(nkey.reveal()),
            Way::Token(token) => options.token(token.reveal()),
        })
    }
}

impl Way<'_> {
    /// What the environment holds too came from there, or might as well have.
    fn is(&self, inherited: Option<OsString>) -> bool {
        let value = match self {
            Self::User(text) | Self::Jwt(text) | Self::Nkey(text) | Self::Token(text) => {
                text.as_ref()
            }
            Self::Creds(file) => file,
        };
        inherited.as_deref() == Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Option<Given> {
        Some(Given(text.into()))
    }

    /// How a login shows in the options' `Debug`, with `environment` as `NAME=value` words.
    fn applied(login: &Login, url: &str, environment: &str) -> Result<String, String> {
        let options = ConnectOptions::new(url).expect("valid");
        let lookup = |name: &str| {
            let found = environment.split(' ').find_map(|word| word.strip_prefix(name));
            found.and_then(|rest| rest.strip_prefix('=')).map(OsString::from)
        };
        match login.apply(options, url.contains('@'), lookup) {
            Ok(options) => Ok(format!("{options:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn what_is_typed_goes_before_the_url_and_that_before_the_environment() {
        let both =
            Login { user: given("u"), password: given("p"), token: given("t"), ..Login::default() };
        let cases = [
            ("a", "", "user: \"u\""),
            ("a", "NATS_USER=u", "Token"),
            ("a", "NATS_TOKEN=t", "user: \"u\""),
            ("a", "NATS_USER=u NATS_TOKEN=t", "user: \"u\""),
            ("me:x@a", "NATS_USER=u NATS_TOKEN=t", "user: \"me\""),
            ("me:x@a", "NATS_USER=u", "Token"),
        ];
        for (url, environment, expected) in cases {
            let shown = applied(&both, url, environment).expect("valid");
            assert!(shown.contains(expected), "{url} {environment}: {shown}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_nats_command_line() {
        let mut all = Login {
            user: given("u"),
            password: given("p"),
            token: given("t"),
            creds: Some("c".into()),
            nkey: given("n"),
            jwt: given("j"),
            seed: given("s"),
        };
        let shown = |login: &Login| applied(login, "a", "").expect("valid");
        assert!(shown(&all).contains("User {"));
        all.user = None;
        assert!(shown(&all).contains("File("));
        all.creds = given("").map(|empty| empty.0.into());
        assert!(shown(&all).contains("Jwt {"));
        all.jwt = given("");
        assert!(shown(&all).contains("Nkey("));
        all.nkey = None;
        assert!(shown(&all).contains("Token("));
    }

    #[test]
    fn half_a_login_is_a_mistake() {
        let password = Login { password: given("p"), ..Login::default() };
        assert!(applied(&password, "a", "").expect_err("no user").contains("--user"));
        assert!(applied(&password, "me:x@a", "").is_ok());
        let jwt = Login { jwt: given("j"), ..Login::default() };
        assert!(applied(&jwt, "a", "").expect_err("no seed").contains("--seed"));
        let seed = Login { seed: given("s"), ..Login::default() };
        assert!(applied(&seed, "a", "").expect_err("no jwt").contains("--jwt"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let login = Login { user: given("hush"), token: given("hush"), ..Login::default() };
        assert!(!format!("{login:?}").contains("hush"));
    }
}
