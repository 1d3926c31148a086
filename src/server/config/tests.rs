//! Settings read from flags, and what is said of bad ones.

use super::*;

fn parse(args: &[&str]) -> ServerConfig {
    let args = ["dflockd"].iter().chain(args).map(|arg| (*arg).to_owned());
    ServerConfig::from_args(args)
}

#[test]
fn flags_with_no_value_set_are_the_defaults() {
    assert_eq!(format!("{:?}", parse(&[])), format!("{:?}", ServerConfig::default()));
}

#[test]
fn one_dash_is_as_good_as_two() {
    let config = parse(&["-port", "7000", "--max-locks=5", "-auto-release-on-disconnect=false", "-debug"]);
    assert_eq!((config.port, config.max_locks), (7000, 5));
    assert!(!config.auto_release_on_disconnect && config.debug);
}

#[test]
fn a_setting_that_cannot_work_is_named_with_its_limit() {
    let fault = |config: ServerConfig| config.validate().unwrap_err().to_string();
    let config = ServerConfig { read_timeout: 0, ..Default::default() };
    assert_eq!(fault(config), "invalid input: read_timeout is 0, the least is 1");
    let config = ServerConfig { tls_cert: Some("c".into()), ..Default::default() };
    assert!(fault(config).contains("both --tls-cert and --tls-key must be provided"));
    let config = ServerConfig { default_lease_ttl: MAX_SECONDS + 1, ..Default::default() };
    assert!(fault(config).contains("the limit is 9223372036 s"));
    assert!(ServerConfig::default().validate().is_ok());
}

#[test]
fn a_token_file_loses_its_trailing_white_space_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let config = ServerConfig { auth_token_file: Some(path.clone()), ..Default::default() };
    std::fs::write(&path, " se cret \r\n\n").unwrap();
    assert_eq!(config.read_auth_token().unwrap().as_deref(), Some(" se cret"));
    std::fs::write(&path, "two\nlines").unwrap();
    assert!(config.read_auth_token().is_err());
}

#[test]
fn secrets_are_not_shown() {
    let config = ServerConfig { auth_token: Some("hunter2hunter2".into()), ..Default::default() };
    assert!(!format!("{config:?}").contains("hunter2"));
}
