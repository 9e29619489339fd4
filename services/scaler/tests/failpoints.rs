//! Calls and answers that are lost at the fail points. Fail points are the process's, so this file has one test.

mod common;

use common::{Service, database, pool, until};
use millrace_proto::scaler::v1::{CreatePoolRequest, DeletePoolRequest};
use millrace_runtime::failpoint;

#[tokio::test(start_paused = true)]
async fn calls_that_are_lost_before_and_after_they_are_made_make_nothing_twice() {
    let text = "scaler.before_call=drop:0.3;scaler.after_call=drop:0.3;scaler.end.before_call=drop:0.3;scaler.end.after_call=drop:0.3";
    failpoint::configure(text).unwrap();
    let store = database();
    let service = Service::start(&store, &[]).await;
    let mut client = service.client();
    let request = CreatePoolRequest { pool: Some(pool("p", 30)), ..Default::default() };
    client.create_pool(request).await.unwrap();
    until("all nodes", async || service.provider.there().len() == 30).await;
    assert_eq!(service.provider.made().len(), 30);
    let request = DeletePoolRequest { name: "p".into(), drain: true, ..Default::default() };
    client.delete_pool(request).await.unwrap();
    until("their end", async || service.provider.there().is_empty()).await;
    assert_eq!((service.provider.made().len(), service.provider.ended().len()), (30, 30));
}
