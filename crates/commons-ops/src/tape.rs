//! The gradient engine: what fused ops record, and the walk that runs their backward passes.
//!
//! A recorded op is an ordinary candle custom op, so graphs that mix in plain candle ops still
//! differentiate through candle's own engine. When a graph consists of recorded ops and views only,
//! [`run`] walks it itself: candle's engine spends a zeroed buffer and an addition on every
//! gradient, this one writes the first gradient in place and lets matrix products accumulate into
//! the buffer that is already there.

use crate::grads::Grads;
use crate::view;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, TensorId,
    Var, bail,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The backward pass of a fused op.
pub(crate) trait Op: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    /// Adds the gradients of the arguments through `cx`.
    fn backward(&self, cx: &mut Cx<'_>) -> Result<()>;
}

/// A gradient under construction.
#[derive(Clone)]
pub(crate) struct Slot {
    grad: Tensor,
    /// Held by every slot on the same storage, which may be written when there is only one;
    /// `None` if somebody outside the engine may hold it.
    token: Option<Arc<()>>,
}

impl Slot {
    /// A gradient nobody else holds.
    fn new(grad: Tensor) -> Self {
        Self { grad, token: Some(Arc::default()) }
    }

    fn writable(&self) -> bool {
        let alone = self.token.as_ref().is_some_and(|token| Arc::strong_count(token) == 1);
        alone && view::fused(&[&self.grad])
    }
}

/// Gradients by the tensor they belong to.
#[derive(Default)]
pub(crate) struct Store(HashMap<TensorId, Slot>);

impl Store {
    pub fn remove(&mut self, tensor: &Tensor) -> Option<Slot> {
        self.0.remove(&tensor.id())
    }

    fn add(&mut self, id: TensorId, new: Slot) -> Result<()> {
        match self.0.get_mut(&id) {
            None => {
                self.0.insert(id, new);
            }
            Some(slot) if slot.writable() => view::add_assign(&slot.grad, &new.grad)?,
            Some(slot) => *slot = Slot::new((&slot.grad + &new.grad)?.detach()),
        }
        Ok(())
    }

    fn into_grads(self) -> Grads {
        self.0.into_iter().map(|(id, slot)| (id, slot.grad)).collect()
    }
}

/// What an [`Op`] sees while it runs backward.
pub(crate) struct Cx<'a> {
    pub args: &'a [Tensor],
    /// The op's result.
    pub out: &'a Tensor,
    /// Gradient of the result; contiguous, never to be written.
    pub grad: &'a Tensor,
    token: Option<Arc<()>>,
    store: &'a mut Store,
}

impl Cx<'_> {
    /// Whether argument `i` leads to a parameter.
    pub fn wants(&self, i: usize) -> bool {
        self.args[i].track_op()
    }

    /// Adds a freshly computed gradient to argument `i`.
    pub fn give(&mut self, i: usize, grad: Tensor) -> Result<()> {
        self.store.add(self.args[i].id(), Slot::new(grad))
    }

    /// Adds a freshly computed `f32` gradient to argument `i`.
    pub fn give_vec(&mut self, i: usize, grad: Vec<f32>) -> Result<()> {
        let arg = &self.args[i];
        self.give(i, Tensor::from_vec(grad, arg.shape(), arg.device())?)
    }

    /// Adds a gradient of another engine run to argument `i`.
    pub fn merge(&mut self, i: usize, slot: Slot) -> Result<()> {
        self.store.add(self.args[i].id(), slot)
    }

    /// Adds a gradient whose storage may be in use elsewhere to argument `i`, such as the
    /// gradient of the result itself.
    pub fn share(&mut self, i: usize, grad: Tensor) -> Result<()> {
        let own = view::same_storage(&grad, self.grad);
        let token = if own { self.token.clone() } else { None };
        self.store.add(self.args[i].id(), Slot { grad, token })
    }

    /// Lets `f` write (`fresh`) or add to the `f32` gradient of argument `i`. A fresh buffer
    /// holds zeros.
    pub fn accumulate(
        &mut self,
        i: usize,
        f: impl FnOnce(&mut [f32], bool) -> Result<()>,
    ) -> Result<()> {
        let arg = &self.args[i];
        if let Some(slot) = self.store.0.get_mut(&arg.id()) {
            if !slot.writable() {
                *slot = Slot::new(slot.grad.copy()?);
            }
            return view::write(&slot.grad, |dst| f(dst, false));
        }
        let mut dst = vec![0f32; arg.elem_count()];
        f(&mut dst, true)?;
        self.give_vec(i, dst)
    }

    /// Adds gradients of parameters that are not arguments (a checkpointed segment's).
    pub fn leaves(&mut self, found: Store) -> Result<()> {
        found.0.into_iter().try_for_each(|(id, slot)| self.store.add(id, slot))
    }
}

/// A recorded op and its arguments.
struct Node {
    op: Box<dyn Op>,
    args: Vec<Tensor>,
    id: OnceLock<TensorId>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(id) = self.id.get() {
            registry().remove(id);
        }
    }
}

/// Which live tensors are results of recorded ops. Entries leave when the node is dropped, which
/// candle does together with the tensor.
fn registry() -> MutexGuard<'static, HashMap<TensorId, Weak<Node>>> {
    static REGISTRY: LazyLock<Mutex<HashMap<TensorId, Weak<Node>>>> = LazyLock::new(Mutex::default);
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    static NO_GRAD: Cell<bool> = const { Cell::new(false) };
    /// Whether something that would have been recorded was not.
    static SKIPPED: Cell<bool> = const { Cell::new(false) };
    /// Gradients of parameters, collected beside candle's engine.
    static SIDE: RefCell<Option<Store>> = const { RefCell::new(None) };
}

/// Runs `f` without recording fused ops; returns its result and whether anything was left out.
pub(crate) fn unrecorded<T>(f: impl FnOnce() -> T) -> (T, bool) {
    struct Restore(bool, bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            NO_GRAD.set(self.0);
            SKIPPED.set(self.1 || (self.0 && SKIPPED.get()));
        }
    }
    let restore = Restore(NO_GRAD.replace(true), SKIPPED.replace(false));
    let out = f();
    let skipped = SKIPPED.get();
    drop(restore);
    (out, skipped)
}

/// Whether a result of these arguments will be recorded.
pub(crate) fn tracking(args: &[&Tensor]) -> bool {
    !NO_GRAD.get() && args.iter().any(|arg| arg.track_op())
}

/// Runs `f`, during which this thread may pick up somebody else's work, with clean flags: a
/// stolen job must not inherit [`unrecorded`] from the job that waits below it.
pub(crate) fn isolated<T>(f: impl FnOnce() -> T) -> T {
    let flags = (NO_GRAD.replace(false), SKIPPED.replace(false));
    let side = SIDE.take();
    let out = f();
    NO_GRAD.set(flags.0);
    SKIPPED.set(flags.1);
    SIDE.set(side);
    out
}

/// [`record`] for a result in `f32`.
pub(crate) fn record_f32(
    op: impl Op,
    args: &[&Tensor],
    value: Vec<f32>,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    record(op, args, CpuStorage::F32(value), shape)
}

/// Makes the CPU result `value` of `op` on `args` a tensor of the graph.
pub(crate) fn record(
    op: impl Op,
    args: &[&Tensor],
    value: CpuStorage,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let shape = shape.into();
    let tracked = args.iter().any(|arg| arg.track_op());
    if tracked && NO_GRAD.get() {
        SKIPPED.set(true);
    }
    if !tracked || NO_GRAD.get() {
        let storage = Storage::Cpu(value);
        return Ok(Tensor::from_storage(
            storage,
            shape,
            candle_core::op::BackpropOp::none(),
            false,
        ));
    }
    let node = Arc::new(Node {
        op: Box::new(op),
        args: args.iter().map(|&arg| arg.clone()).collect(),
        id: OnceLock::new(),
    });
    let value = Mutex::new(Some((value, shape)));
    let out = attach(&node, value)?;
    if node.id.set(out.id()).is_ok() {
        registry().insert(out.id(), Arc::downgrade(&node));
    }
    Ok(out)
}

/// Hangs `value` into candle's graph below the node's arguments. Custom ops take three arguments
/// at most: more are joined through one-element tokens that only carry the dependency.
fn attach(node: &Arc<Node>, value: Mutex<Option<(CpuStorage, Shape)>>) -> Result<Tensor> {
    let stash = Arc::new(Mutex::new(Store::default()));
    let mut rest = node.args.as_slice();
    let mut token: Option<Tensor> = None;
    while rest.len() > 3 - usize::from(token.is_some()) {
        let take = 3 - usize::from(token.is_some());
        let (now, later) = rest.split_at(take);
        let link = Link {
            name: node.op.name(),
            value: Mutex::new(Some((CpuStorage::F32(vec![0.0]), Shape::from(1)))),
            work: Work::Token(stash.clone()),
        };
        token = Some(apply(link, token.iter().chain(now))?);
        rest = later;
    }
    let link = Link { name: node.op.name(), value, work: Work::Node(node.clone(), stash) };
    apply(link, token.iter().chain(rest))
}

fn apply<'a>(link: Link, args: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    match args.collect::<Vec<_>>()[..] {
        [a] => a.apply_op1(link),
        [a, b] => a.apply_op2(b, link),
        [a, b, c] => a.apply_op3(b, c, link),
        _ => bail!("{}: an op must have an argument", link.name),
    }
}

/// The candle side of a node.
struct Link {
    name: &'static str,
    value: Mutex<Option<(CpuStorage, Shape)>>,
    work: Work,
}

enum Work {
    Node(Arc<Node>, Arc<Mutex<Store>>),
    Token(Arc<Mutex<Store>>),
}

impl Link {
    fn forward(&self) -> Result<(CpuStorage, Shape)> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        match value {
            Some(value) => Ok(value),
            None => bail!("{}: a recorded result can be attached only once", self.name),
        }
    }

    /// Runs under candle's engine: gradients of `args` in order, those of parameters put aside
    /// when [`backward_by_candle`] collects them.
    fn backward(
        &self,
        args: &[&Tensor],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let stash = match &self.work {
            Work::Token(stash) => stash,
            Work::Node(node, stash) => {
                let mut store = Store::default();
                let grad = grad.contiguous()?;
                let mut cx =
                    Cx { args: &node.args, out, grad: &grad, token: None, store: &mut store };
                node.op.backward(&mut cx)?;
                put_aside(self.name, &node.args, &mut store)?;
                lock(stash).0.extend(store.0);
                stash
            }
        };
        let mut stash = lock(stash);
        args.iter()
            .map(|arg| match stash.remove(arg) {
                Some(slot) => Ok(Some(slot.grad)),
                // Candle expects a gradient for every tracked argument that is not a parameter.
                None if arg.track_op() && !arg.is_variable() => arg.zeros_like().map(Some),
                None => Ok(None),
            })
            .collect()
    }
}

fn lock(stash: &Mutex<Store>) -> MutexGuard<'_, Store> {
    stash.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves parameters' gradients from `store` to the side store, if one is open.
fn put_aside(op: &'static str, args: &[Tensor], store: &mut Store) -> Result<()> {
    let is_arg = |id: &TensorId| args.iter().any(|arg| arg.id() == *id);
    let is_inner = |id: &TensorId| args.iter().any(|arg| arg.id() == *id && !arg.is_variable());
    SIDE.with_borrow_mut(|side| {
        let Some(side) = side else {
            if !store.0.keys().all(is_arg) {
                bail!("{op}: call commons_ops::backward, candle's loses gradients here")
            }
            return Ok(());
        };
        let all = std::mem::take(store);
        for (id, slot) in all.0 {
            match is_inner(&id) {
                true => drop(store.0.insert(id, slot)),
                false => side.add(id, slot)?,
            }
        }
        Ok(())
    })
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward()
    }
    fn bwd(&self, a: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(&[a], out, grad)?.pop().flatten())
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward()
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b], out, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten()))
    }
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward()
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b, c], out, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten(), grads.next().flatten()))
    }
}

/// How a tensor came to be, as far as [`run`] can tell.
enum Source {
    Parameter,
    Recorded(Arc<Node>),
    /// A view (reshape, narrow, transpose, broadcast) of another tensor.
    View(Tensor),
    /// A candle op.
    Foreign,
}

fn source(tensor: &Tensor) -> Source {
    if tensor.is_variable() {
        return Source::Parameter;
    }
    if let Some(node) = registry().get(&tensor.id()).and_then(Weak::upgrade) {
        return Source::Recorded(node);
    }
    // For an op with one argument the second node in topological order is that argument, and only
    // views share their argument's storage.
    match tensor.sorted_nodes().get(1) {
        Some(arg) if view::same_storage(tensor, arg) => Source::View((*arg).clone()),
        _ => Source::Foreign,
    }
}

/// The gradients of all parameters below `root`, given the gradient `seed` of `root`.
pub(crate) fn run(root: &Tensor, seed: Tensor) -> Result<Grads> {
    Ok(run_store(root, seed)?.into_grads())
}

/// [`run`], keeping track of who holds which gradient.
pub(crate) fn run_store(root: &Tensor, seed: Tensor) -> Result<Store> {
    let Some(order) = order(root) else {
        return backward_by_candle(root, &seed);
    };
    let mut store = Store::default();
    store.add(root.id(), Slot { grad: seed.contiguous()?, token: None })?;
    for (tensor, source) in order.iter().rev() {
        if matches!(source, Source::Parameter) {
            continue;
        }
        let Some(Slot { grad, token }) = store.remove(tensor) else {
            continue;
        };
        match source {
            Source::Recorded(node) => node.op.backward(&mut Cx {
                args: &node.args,
                out: tensor,
                grad: &grad,
                token,
                store: &mut store,
            })?,
            Source::View(arg) => {
                let slot = match view::backward(arg, tensor, &grad)? {
                    (grad, true) => Slot::new(grad),
                    (grad, false) => Slot { grad, token },
                };
                store.add(arg.id(), slot)?;
            }
            Source::Parameter | Source::Foreign => {}
        }
    }
    Ok(store)
}

/// The tracked tensors below `root`, arguments first; `None` if a candle op is among them.
fn order(root: &Tensor) -> Option<Vec<(Tensor, Source)>> {
    enum Visit {
        Enter(Tensor),
        Leave(Tensor, Source),
    }
    let mut seen = std::collections::HashSet::new();
    let mut order = Vec::new();
    let mut stack = vec![Visit::Enter(root.clone())];
    while let Some(visit) = stack.pop() {
        let tensor = match visit {
            Visit::Leave(tensor, source) => {
                order.push((tensor, source));
                continue;
            }
            Visit::Enter(tensor) => tensor,
        };
        if !tensor.track_op() || tensor.dtype().is_int() || !seen.insert(tensor.id()) {
            continue;
        }
        let source = source(&tensor);
        let args: Vec<Tensor> = match &source {
            Source::Foreign => return None,
            Source::Parameter => Vec::new(),
            Source::View(arg) => vec![arg.clone()],
            Source::Recorded(node) => node.args.clone(),
        };
        stack.push(Visit::Leave(tensor, source));
        stack.extend(args.into_iter().map(Visit::Enter));
    }
    Some(order)
}

/// The same by candle's engine, for graphs with candle ops in them.
fn backward_by_candle(root: &Tensor, seed: &Tensor) -> Result<Store> {
    let loss = (root * seed)?.sum_all()?;
    let outer = SIDE.replace(Some(Store::default()));
    let result = loss.backward();
    let mut store = SIDE.replace(outer).unwrap_or_default();
    let mut found = result?;
    for node in loss.sorted_nodes() {
        if node.is_variable()
            && let Some(grad) = found.remove(node)
        {
            let grad = grad.detach().contiguous()?;
            store.add(node.id(), Slot { grad, token: None })?;
        }
    }
    Ok(store)
}

/// A parameter nobody trains, to keep results tracked that depend on parameters only inside.
pub(crate) fn anchor() -> Result<Tensor> {
    thread_local! {
        static ANCHOR: RefCell<Option<Var>> = const { RefCell::new(None) };
    }
    ANCHOR.with_borrow_mut(|anchor| match anchor {
        Some(var) => Ok(var.as_tensor().clone()),
        None => {
            let var = Var::from_vec(vec![0f32], 1, &candle_core::Device::Cpu)?;
            Ok(anchor.insert(var).as_tensor().clone())
        }
    })
}
