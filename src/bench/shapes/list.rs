//! A list of cases, each under a name that says what it is and where it is met.

use crate::bench::case::{Case, Op};
use crate::bench::moves::{Move, MoveKind};
use crate::bench::product::{Form, Product};
use crate::bench::rows::{RowKind, RowOp};
use crate::bench::updates::{UpdateCase, UpdateKind};
use crate::ops::blockwise;

#[derive(Default)]
pub(super) struct List {
    pub cases: Vec<Case>,
    /// The last part of the names.
    pub place: String,
}

impl List {
    pub fn at(&mut self, place: String, cases: impl FnOnce(&mut List)) {
        self.place = place;
        cases(self);
    }

    pub fn push(&mut self, name: &str, op: Op) {
        let name = format!("{name}/{}", self.place);
        self.cases.push(Case { name, op });
    }

    pub fn product(&mut self, name: &str, product: Product) {
        self.push(&format!("product/{name}"), Op::Product(product));
    }

    /// `y = x Wᵀ`, and its gradients, for `rows` rows.
    pub fn linear(
        &mut self,
        name: &str,
        rows: usize,
        inputs: usize,
        outputs: usize,
        change: impl Fn(Product) -> Product,
    ) {
        self.product(
            &format!("{name}/forward"),
            change(Product::new(Form::Nt, rows, outputs, inputs)),
        );
        self.product(&format!("{name}/dx"), Product::new(Form::Nn, rows, inputs, outputs));
        self.product(&format!("{name}/dw"), Product::new(Form::Tn, outputs, inputs, rows));
    }

    pub fn rows(&mut self, name: &str, op: RowKind, rows: usize, width: usize) {
        self.push(name, Op::Rows(RowOp { op, rows, width }));
    }

    pub fn moved(&mut self, name: &str, op: MoveKind, rows: usize, width: usize, parts: usize) {
        let op = Op::Move(Move { op, rows, width, parts });
        self.push(name, op);
    }

    pub fn updates(&mut self, name: &str, elements: usize) {
        for (op, kind) in [
            ("adamw", UpdateKind::Adamw),
            ("lion", UpdateKind::Lion),
            ("soft_update", UpdateKind::SoftUpdate),
            ("norm", UpdateKind::Norm),
            ("clip", UpdateKind::Clip),
        ] {
            self.push(&format!("{op}/{name}"), Op::Update(UpdateCase { op: kind, elements }));
        }
        // Whole blocks, as stores have them.
        let elements = elements.next_multiple_of(blockwise::BLOCK);
        let op = UpdateKind::Blockwise;
        self.push(&format!("blockwise/{name}"), Op::Update(UpdateCase { op, elements }));
    }
}

pub(super) fn biased(p: Product) -> Product {
    Product { bias: true, ..p }
}

pub(super) fn residual(p: Product) -> Product {
    Product { residual: true, ..p }
}
