//! Rows that the fake has set aside. Of these it can read the ones whose defect is in the column `attempt`.

use std::sync::Mutex;

use millrace_proto::distributor::v1::quarantine_service_server::QuarantineService;
use millrace_proto::distributor::v1::*;
use tonic::{Request, Response, Status};

use super::Fake;

#[derive(Default)]
pub(crate) struct Quarantine {
    pub(crate) rows: Mutex<Vec<QuarantinedRow>>,
    pub(crate) repairs: Mutex<Vec<RepairQuarantinedRowRequest>>,
    pub(crate) releases: Mutex<Vec<ReleaseQuarantinedRowsRequest>>,
    pub(crate) discards: Mutex<Vec<DiscardQuarantinedRowsRequest>>,
}

/// A row of which a column cannot be read.
pub(crate) fn row(id: &str, column: &str) -> QuarantinedRow {
    QuarantinedRow {
        task_id: id.into(),
        tenant: "team-a".into(),
        queue: "builds".into(),
        columns: vec![
            QuarantinedColumn { name: "attempt".into(), value: Some("ma\u{1b}ny".into()), r#type: "text".into() },
            QuarantinedColumn { name: "token".into(), value: None, r#type: "null".into() },
        ],
        defect: Some(Defect { column: column.into(), error: "is not a whole number".into() }),
        writer_format: 1,
        refused_by: vec!["0.1".into(), "0.2".into()],
        first_seen_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..Default::default()
    }
}

/// The rows of one page, two at most, and the token of the next.
fn page(rows: &[QuarantinedRow], filter: Option<QuarantineFilter>, token: &str) -> (Vec<QuarantinedRow>, String) {
    let column = filter.unwrap_or_default().column;
    let start: usize = token.parse().unwrap_or(0);
    let all: Vec<_> =
        rows.iter().filter(|row| column.is_empty() || row.defect.as_ref().unwrap().column == column).cloned().collect();
    let next = if start + 2 < all.len() { (start + 2).to_string() } else { String::new() };
    (all.into_iter().skip(start).take(2).collect(), next)
}

#[tonic::async_trait]
impl QuarantineService for Fake {
    async fn list_quarantined_rows(
        &self,
        request: Request<ListQuarantinedRowsRequest>,
    ) -> Result<Response<ListQuarantinedRowsResponse>, Status> {
        let request = request.into_inner();
        let (rows, next_page_token) = page(&self.quarantine.rows.lock().unwrap(), request.filter, &request.page_token);
        Ok(Response::new(ListQuarantinedRowsResponse { rows, next_page_token }))
    }

    async fn get_quarantined_row(
        &self,
        request: Request<GetQuarantinedRowRequest>,
    ) -> Result<Response<GetQuarantinedRowResponse>, Status> {
        let id = request.into_inner().task_id;
        let row = self.quarantine.rows.lock().unwrap().iter().find(|row| row.task_id == id).cloned();
        let row = row.ok_or_else(|| Status::not_found(format!("task {id} is not set aside")))?;
        Ok(Response::new(GetQuarantinedRowResponse { row: Some(row) }))
    }

    async fn repair_quarantined_row(
        &self,
        request: Request<RepairQuarantinedRowRequest>,
    ) -> Result<Response<RepairQuarantinedRowResponse>, Status> {
        let request = request.into_inner();
        let task =
            (!request.validate_only).then(|| Task { id: request.task_id.clone(), state: 2, ..Default::default() });
        self.quarantine.repairs.lock().unwrap().push(request);
        Ok(Response::new(RepairQuarantinedRowResponse { task }))
    }

    async fn release_quarantined_rows(
        &self,
        request: Request<ReleaseQuarantinedRowsRequest>,
    ) -> Result<Response<ReleaseQuarantinedRowsResponse>, Status> {
        let request = request.into_inner();
        let rows = self.quarantine.rows.lock().unwrap();
        let (rows, next_page_token) = page(&rows, request.filter.clone(), &request.page_token);
        let mut answer =
            ReleaseQuarantinedRowsResponse { matched: rows.len() as i32, next_page_token, ..Default::default() };
        if !request.dry_run {
            let refused = rows.into_iter().filter(|row| row.defect.as_ref().unwrap().column != "attempt");
            answer.refused = refused.map(|row| RefusedRow { task_id: row.task_id, defect: row.defect }).collect();
            answer.released = answer.matched - answer.refused.len() as i32;
        }
        self.quarantine.releases.lock().unwrap().push(request);
        Ok(Response::new(answer))
    }

    async fn discard_quarantined_rows(
        &self,
        request: Request<DiscardQuarantinedRowsRequest>,
    ) -> Result<Response<DiscardQuarantinedRowsResponse>, Status> {
        let request = request.into_inner();
        let rows = self.quarantine.rows.lock().unwrap();
        let (rows, next_page_token) = page(&rows, request.filter.clone(), &request.page_token);
        let matched = rows.len() as i32;
        self.quarantine.discards.lock().unwrap().push(request);
        Ok(Response::new(DiscardQuarantinedRowsResponse {
            matched,
            discarded: matched,
            next_page_token,
            ..Default::default()
        }))
    }
}
