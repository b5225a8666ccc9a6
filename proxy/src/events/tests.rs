//! Events about refused service ports, on a clock that moves only while the test waits.

use std::time::Duration;

use shunt_model::{Family, Protocol};

use super::*;

fn refusal((service, reason): &(&str, &str)) -> (PortKey, String) {
    let service = ObjectKey::new("shop", *service);
    (PortKey { service, port: Arc::from(""), protocol: Protocol::Tcp, family: Family::V4 }, (*reason).to_owned())
}

/// The Services that a status refuses with the reason, and those that get an event then.
type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// Each row is the next status.
async fn check(rows: &[Row<'_>]) {
    let (recorder, mut recorded) = recorder();
    let (status, follow) = watch::channel(Status::default());
    let telling = tokio::spawn(tell_refusals(recorder, follow));
    for (refused, told) in rows {
        status.send_modify(|status| status.refused = refused.iter().map(refusal).collect());
        // The clock moves only when the follower has nothing left to do.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut events = Vec::new();
        while let Ok(event) = recorded.inbox.try_recv() {
            assert_eq!((event.kind, event.warning, &*event.reason), ("Service", true, "FailedToProgramService"));
            events.push(event.name);
        }
        assert_eq!(events, *told, "{refused:?}");
    }
    drop(status);
    telling.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_once_until_it_is_another_or_comes_back() {
    let (one, both) = ([("s1", "full")], [("s1", "full"), ("s2", "full")]);
    check(&[(&[], &[]), (&one, &["s1"]), (&one, &[]), (&both, &["s2"]), (&both, &[])]).await;
    check(&[(&both, &["s1", "s2"]), (&[("s1", "too many endpoints")], &["s1"])]).await;
    check(&[(&one, &["s1"]), (&[], &[]), (&one, &["s1"])]).await;
}
