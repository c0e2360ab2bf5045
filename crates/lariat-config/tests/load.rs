//! Files rather than texts: what cannot be read, what lies beside them, and what a good one becomes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use lariat::service::spec::{CommandSpec, Condition, Endpoint, PortSpec, ReadyCheck, RestartWhen, StopScope};
use lariat_config::{Code, Diagnostic, FILE_BYTES_MAX, Format, Look, load, render};
use lariat_sys::signal::Signal;

fn error(path: &Path) -> Diagnostic {
    let mut errors = load(path).expect_err("a bad file");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.remove(0)
}

fn shown(path: &Path) -> String {
    let text = render(&[error(path)], Look { is_styled: false, width: 200 });
    text.replace(&path.parent().unwrap_or(path).display().to_string(), "DIR")
}

#[test]
fn what_is_no_readable_file_is_said_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    let absent = shown(&at("lariat.toml"));
    assert!(
        absent.contains("error[unreadable]: cannot read DIR/lariat.toml: there is no such file"),
        "{absent}"
    );
    assert!(absent.contains("help: give another one with `-f`, or write one with `lariat init`"), "{absent}");

    fs::create_dir(at("dir.toml")).expect("a directory");
    assert!(shown(&at("dir.toml")).contains("cannot read DIR/dir.toml: it is a directory"));
    fs::write(at("plain"), "").expect("a file");
    assert!(shown(&at("plain/lariat.toml")).contains("a part of the path is not a directory"));

    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe.toml"), rustix::fs::Mode::RWXU).expect("a pipe");
    assert!(shown(&at("pipe.toml")).contains("cannot read DIR/pipe.toml: not a regular file"));

    fs::write(at("compose.yaml"), "services:\n").expect("a file");
    assert_eq!(error(&at("compose.yaml")).code, Code::Format);
}

#[test]
fn encodings_and_sizes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lariat.toml");
    fs::write(&path, b"[service.web]\nrun = \"caf\xe9\"\n").expect("a file");
    let text = shown(&path);
    assert!(text.contains("error[not-utf8]") && text.contains("lariat.toml:2:11"), "{text}");
    assert!(text.contains("the byte 0xE9"), "{text}");

    let wide: Vec<u8> = "[service.web]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, [b"\xff\xfe".to_vec(), wide].concat()).expect("a file");
    assert!(shown(&path).contains("it looks like UTF-16"));

    let size = usize::try_from(FILE_BYTES_MAX).expect("a small number");
    let start = "[service.web]\nrun = 'x'\n#";
    fs::write(&path, format!("{start}{}", "x".repeat(size - start.len()))).expect("a file");
    assert_eq!(load(&path).expect("just within the limit").spec.services.len(), 1);
    fs::write(&path, format!("{start}{}", "x".repeat(size - start.len() + 1))).expect("a file");
    assert_eq!(error(&path).code, Code::TooLarge);
}

#[test]
fn directories_are_looked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lariat.toml");
    fs::create_dir(dir.path().join("web")).expect("a directory");
    fs::write(dir.path().join("file"), "").expect("a file");
    fs::write(&path, "[service.a]\nrun = 'x'\ndir = './web/.'\n").expect("a file");
    let loaded = load(&path).expect("a good file");
    assert!(loaded.warnings.is_empty());
    let root = fs::canonicalize(dir.path()).expect("an existing directory");
    assert_eq!(loaded.spec.services[0].dir, root.join("web"));

    fs::write(&path, "[service.a]\nrun = 'x'\ndir = 'wbe'\n").expect("a file");
    let loaded = load(&path).expect("a missing directory may still come");
    assert_eq!(loaded.warnings[0].code, Code::Directory);
    let help = loaded.warnings[0].help.as_ref().map(|help| help.message.as_str());
    assert_eq!(help, Some("there is a directory `web` beside it"));

    fs::write(&path, "[service.a]\nrun = 'x'\ndir = 'file'\n").expect("a file");
    assert_eq!(error(&path).code, Code::Directory);
}

#[test]
fn the_root_is_where_the_link_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = fs::canonicalize(dir.path()).expect("an existing directory");
    fs::create_dir_all(root.join("real")).expect("a directory");
    fs::create_dir_all(root.join("project")).expect("a directory");
    fs::write(root.join("real/stack.toml"), "[service.a]\nrun = 'x'\n").expect("a file");
    symlink("../real/stack.toml", root.join("project/lariat.toml")).expect("a link");
    symlink("project", root.join("way")).expect("a link");
    let spec = load(&root.join("way/lariat.toml")).expect("a good file").spec;
    assert_eq!(spec.root, root.join("project"));
    assert_eq!(spec.name, "project");
    assert_eq!(spec.services[0].dir, root.join("project"));
}

#[test]
fn a_procfile_says_what_is_not_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("Procfile.dev");
    fs::write(&path, "web: npm start\n").expect("a file");
    assert!(load(&path).expect("a good file").warnings.is_empty());
    fs::write(dir.path().join(".env"), "A=b\n").expect("a file");
    let loaded = load(&path).expect("a good file");
    assert_eq!(loaded.warnings[0].message, "the file .env is not read");
    let CommandSpec::Shell { shell, text } = &loaded.spec.services[0].command else {
        panic!("a shell's line")
    };
    assert_eq!((shell.len(), text.to_str()), (2, Some("npm start")));
    assert!(loaded.spec.services[0].port.is_none());
}

#[test]
fn formats_follow_the_name() {
    let cases = [
        ("lariat.toml", Some(Format::Toml)),
        ("Procfile", Some(Format::Procfile)),
        ("x/Procfile.dev", Some(Format::Procfile)),
        ("web.procfile", Some(Format::Procfile)),
        ("stack.conf", Some(Format::Toml)),
        ("compose.yml", None),
        ("package.json", None),
    ];
    for (name, format) in cases {
        assert_eq!(Format::of(Path::new(name)), format, "{name}");
    }
}

#[test]
fn every_key_reaches_the_specification() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/good-full.toml");
    let spec = load(&path).expect("a good file").spec;
    assert_eq!((spec.name.as_str(), spec.deadline), ("shop", Duration::from_secs(30)));
    let names: Vec<_> = spec.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["db", "migrate", "api", "web", "cache"]);
    let [db, migrate, api, web, cache] = spec.services.as_slice() else { panic!("five services") };

    let ready = db.ready.as_ref().expect("a check");
    assert!(matches!(&ready.check, ReadyCheck::Tcp(Endpoint::Loopback(5432))));
    assert_eq!((ready.timeout, ready.every), (Duration::from_secs(30), Duration::from_millis(200)));
    assert_eq!((db.stop.signal, db.stop.grace), (Signal::INT, Duration::from_secs(8)));
    assert_eq!(db.stop.scope, StopScope::Leader);

    assert_eq!(
        migrate.command,
        CommandSpec::Argv(["python3", "manage.py", "migrate"].map(Into::into).into())
    );
    let after: Vec<_> = api.after.iter().map(|after| (after.service.as_str(), after.condition)).collect();
    assert_eq!(after, [("db", Condition::Ready), ("migrate", Condition::Completed)]);
    assert_eq!(api.command.argv(), ["bash", "-euc", "uvicorn app:app --port $PORT"]);
    assert_eq!(api.port, Some(PortSpec::Fixed(8000)));
    assert_eq!((api.restart.when, api.restart.max), (RestartWhen::OnFailure, 5));
    let env: Vec<_> =
        api.env.iter().map(|(k, v)| (k.to_str().unwrap_or(""), v.to_str().unwrap_or(""))).collect();
    assert_eq!(env, [("LEVEL", "info"), ("WORKERS", "2")]);
    let Some(ReadyCheck::Http { endpoint, host, path }) = api.ready.as_ref().map(|r| &r.check) else {
        panic!("http")
    };
    assert_eq!((endpoint, host.as_str(), path.as_str()), (&Endpoint::OwnPort, "localhost", "/healthz"));

    assert_eq!(web.after[0].condition, Condition::Ready, "a list waits for readiness where there is a check");
    assert_eq!((web.port, web.restart.when), (Some(PortSpec::Auto), RestartWhen::Always));
    let Some(ReadyCheck::Log(pattern)) = web.ready.as_ref().map(|r| &r.check) else { panic!("log") };
    assert!(pattern.is_match(b"ready in 35 ms"));
    assert_eq!(web.env.len(), 1, "the stack's variables are every service's");
    assert!(cache.daemon && cache.port.is_none() && cache.after.is_empty());
}
