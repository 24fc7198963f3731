//! USER, PASS, ACCT, QUIT.

use super::Done;
use crate::support::dialect::{Limit, Login};
use crate::support::hub::Gone;
use crate::support::session::{Session, Stage};

impl Session {
    pub(super) fn login_verb(&mut self, verb: &str, argument: &[u8]) -> Done {
        match verb {
            "USER" => {
                self.set_stage(Stage::NeedPassword);
                self.user = Some(argument.to_vec());
                if self.dialect.login == Login::WithoutPassword {
                    return self.enter();
                }
                self.reply(331, "Please specify the password.")
            }
            "PASS" => {
                let Some(given) = self.user.clone().filter(|_| self.stage != Stage::Start) else {
                    return self.reply(503, "Login with USER first.");
                };
                let expected = match self.dialect.login {
                    Login::Anyone | Login::WithoutPassword => None,
                    Login::As { user, password } | Login::WithAccount { user, password, .. } => {
                        Some((user, password))
                    }
                };
                if let Some((user, password)) = expected
                    && (given != user.as_bytes() || argument != password.as_bytes())
                {
                    self.set_stage(Stage::Start);
                    return self.reply(530, "Login incorrect.");
                }
                if matches!(self.dialect.login, Login::WithAccount { .. }) {
                    self.set_stage(Stage::NeedAccount);
                    return self.reply(332, "Need account for login.");
                }
                self.enter()
            }
            "ACCT" => match self.dialect.login {
                Login::WithAccount { account, .. } if self.stage == Stage::NeedAccount => {
                    if argument == account.as_bytes() {
                        return self.enter();
                    }
                    self.set_stage(Stage::Start);
                    self.reply(530, "Login incorrect.")
                }
                _ => self.reply(202, "ACCT not needed."),
            },
            _ => self.reply(221, "Goodbye."),
        }
    }

    fn enter(&mut self) -> Done {
        if let Limit::AtLogin(most, code, text) = self.dialect.limit {
            let full = self.hub.change(|state| {
                let inside = state.lines.values().filter(|line| line.logged_in).count();
                if inside < most
                    && let Some(line) = state.lines.get_mut(&self.id)
                {
                    line.logged_in = true;
                }
                inside >= most
            });
            if full {
                self.set_stage(Stage::Start);
                self.reply(code, text)?;
                return if code == 421 { Err(Gone) } else { Ok(()) };
            }
        }
        self.set_stage(Stage::LoggedIn);
        self.reply(230, "Login successful.")
    }

    pub(super) fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
        self.hub.change(|state| {
            if let Some(line) = state.lines.get_mut(&self.id) {
                line.logged_in = stage == Stage::LoggedIn;
            }
        });
    }
}
