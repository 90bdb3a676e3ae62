//! What `confine` takes away, alone in its process: it can not be taken back.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

#[test]
fn a_confined_process_opens_no_internet_socket_and_runs_no_program() {
    TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(Command::new("/bin/true").status().unwrap().success());
    // Threads that are there already are confined too.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let earlier = std::thread::spawn(move || {
        wait.recv().unwrap();
        TcpListener::bind("127.0.0.1:0").unwrap_err().kind()
    });
    if !stvor_vault::daemon::confine().unwrap() {
        return;
    }
    go.send(()).unwrap();
    assert_eq!(earlier.join().unwrap(), ErrorKind::PermissionDenied);
    assert_eq!(TcpListener::bind("127.0.0.1:0").unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(UdpSocket::bind("[::1]:0").unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(Command::new("/bin/true").status().is_err());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
}
