//! Live output.

use super::*;

#[tokio::test(start_paused = true)]
async fn output_comes_before_its_result_and_again_after_a_reconnect() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1)]).await;
    let attempt = started.recv().await.unwrap();
    attempt.handle.progress(OutputStream::Stdout, b"one");
    let progress = stream.progress().await;
    assert_eq!((progress.lease, &progress.chunks[0].data[..]), (Some(lease(7, 1)), &b"one"[..]));
    attempt.handle.progress(OutputStream::Stderr, b"two");
    assert_eq!((stream.progress().await.chunks[0].offset, attempt.handle.output_bytes()), (3, 6));
    drop(stream);

    let mut stream = world.welcome(2).await;
    let chunks = stream.progress().await.chunks;
    assert_eq!(
        chunks.iter().map(|chunk| (chunk.offset, &chunk.data[..])).collect::<Vec<_>>(),
        [(0, &b"one"[..]), (3, &b"two"[..])]
    );
    attempt.handle.progress(OutputStream::Stdout, b"three");
    attempt.finish(Outcome::succeeded());
    assert_eq!(stream.progress().await.chunks[0].offset, 6);
    let outcome = stream.completion().await.outcome.unwrap();
    assert_eq!((&outcome.output_tail[..], outcome.output_bytes), (&b"onetwothree"[..], 11));
}

#[tokio::test(start_paused = true)]
async fn output_that_nobody_takes_is_bounded_and_blocks_nothing() {
    let (executor, mut started) = Manual::new();
    let mut world = World::start(options(2), executor);
    let mut stream = world.welcome(1).await;
    stream.assign(vec![assignment(1, 7, 1), assignment(2, 8, 1)]).await;
    let (loud, quiet) = (started.recv().await.unwrap(), started.recv().await.unwrap());
    for _ in 0..1000 {
        loud.handle.progress(OutputStream::Stdout, &[b'x'; 10_000]);
        tokio::task::yield_now().await;
    }
    quiet.finish(Outcome::succeeded());
    // The result gets through though nothing of the output was read before.
    assert_eq!(stream.completion().await.lease, Some(lease(8, 1)));
    let received = |stream: &support::Conversation| -> Vec<(u64, usize)> {
        let chunks = stream.log.iter().flat_map(|message| match message {
            Request::Progress(progress) => progress.chunks.clone(),
            _ => Vec::new(),
        });
        chunks.map(|chunk| (chunk.offset, chunk.data.len())).collect()
    };
    loop {
        let chunks = received(&stream);
        assert!(chunks.windows(2).all(|pair| pair[0].0 + pair[0].1 as u64 <= pair[1].0), "in order, none twice");
        if chunks.last().is_some_and(|(offset, len)| offset + *len as u64 == 10_000_000) {
            assert!(chunks.iter().map(|(_, len)| len).sum::<usize>() < 10_000_000, "the oldest was overwritten");
            break;
        }
        stream.progress().await;
    }
}
