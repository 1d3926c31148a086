//! What is said of bad settings, and the auth token, which is read from a file.

use super::*;

#[test]
fn a_setting_that_cannot_work_is_named_with_its_limit() {
    let fault = |config: ServerConfig| config.validate().unwrap_err().to_string();
    let config = ServerConfig { read_timeout: Duration::ZERO, ..Default::default() };
    assert_eq!(fault(config), "invalid input: read_timeout is 0, it must be longer");
    let config = ServerConfig { tls_cert: Some("c".into()), ..Default::default() };
    assert!(fault(config).contains("both --tls-cert and --tls-key must be provided"));
    let config = ServerConfig {
        default_lease_ttl: Duration::from_secs(crate::MAX_SECONDS) + Duration::from_nanos(1),
        ..Default::default()
    };
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
