//! A child that dies comes back with what is stored, not with what it had; too many deaths go upward.

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// What is "in the database".
static STORED: AtomicU32 = AtomicU32::new(3);

struct Counter {
    value: u32,
    link: Link,
}

impl Actor for Counter {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "u32")]
struct Read;

#[derive(Message)]
#[rtype(result = "()")]
struct SpoilAndDie {
    panicking: bool,
}

impl Handler<Read> for Counter {
    type Result = u32;

    fn handle(&mut self, _: Read, _: &mut Context<Self>) -> u32 {
        self.value
    }
}

impl Handler<SpoilAndDie> for Counter {
    type Result = ();

    fn handle(&mut self, SpoilAndDie { panicking }: SpoilAndDie, ctx: &mut Context<Self>) {
        self.value = 1000;
        assert!(!panicking, "spoilt");
        self.link.because("its commit failed");
        ctx.stop();
    }
}

impl Handler<Stop> for Counter {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

struct Nursery {
    registry: Registry<u32, Counter>,
    tree: Tree,
    supervisor: Addr<Supervisor<u32, Counter>>,
    gave_up: Arc<Mutex<Option<String>>>,
}

fn nursery(intensity: usize, loads: impl Fn() -> anyhow::Result<u32> + 'static) -> Nursery {
    let loads = Rc::new(loads);
    let factory = move |_, link| {
        let loads = Rc::clone(&loads);
        let starting = async move { loads().map(|value| Counter { value, link }.start()) };
        Box::pin(starting) as LocalBoxFuture<'static, _>
    };
    supervised(intensity, Box::new(factory))
}

fn supervised(intensity: usize, factory: Factory<u32, Counter>) -> Nursery {
    let (registry, tree) = (Registry::default(), Tree::default());
    let gave_up = Arc::new(Mutex::new(None));
    let told = Arc::clone(&gave_up);
    let policy = Policy {
        intensity,
        period: Duration::from_secs(60),
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(4),
    };
    let supervisor = Supervisor::new("counters", policy, tree.clone(), registry.clone(), factory, move |why| {
        *told.lock().unwrap() = Some(why.to_owned());
    });
    Nursery { registry, tree, supervisor: supervisor.start(), gave_up }
}

impl Nursery {
    /// The child of this key, once it is another one than `old`.
    async fn child(&self, key: u32, old: Option<&Addr<Counter>>) -> Addr<Counter> {
        for _ in 0..1000 {
            if let Some(addr) = self.registry.get(&key)
                && old.is_none_or(|old| *old != addr)
            {
                return addr;
            }
            actix_rt::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("no child {key} came");
    }

    /// Why the supervisor gave up.
    async fn reason(&self) -> String {
        for _ in 0..1000 {
            if let Some(why) = self.gave_up.lock().unwrap().clone() {
                return why;
            }
            actix_rt::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("it did not give up");
    }
}

#[actix_rt::test]
async fn a_child_that_panics_comes_back_with_what_is_stored() {
    let nursery = nursery(5, || Ok(STORED.load(Ordering::Relaxed)));
    nursery.supervisor.send(Start(7)).await.unwrap();
    let first = nursery.child(7, None).await;
    assert_eq!(first.send(Read).await, Ok(3));

    assert!(first.send(SpoilAndDie { panicking: true }).await.is_err());
    let second = nursery.child(7, Some(&first)).await;
    assert_eq!(second.send(Read).await, Ok(3), "reloaded, not the spoilt 1000");
    let branch = nursery.tree.branches()["counters/7"].clone();
    assert_eq!((branch.restarts, branch.panics, branch.state), (1, 1, BranchState::Running));
}

#[actix_rt::test]
async fn the_tree_keeps_the_last_panic_and_its_place() {
    catch_panic_messages();
    let nursery = nursery(5, || Ok(3));
    nursery.supervisor.send(Start(1)).await.unwrap();
    let first = nursery.child(1, None).await;
    assert!(first.send(SpoilAndDie { panicking: true }).await.is_err());
    let second = nursery.child(1, Some(&first)).await;
    second.send(SpoilAndDie { panicking: false }).await.unwrap();
    nursery.child(1, Some(&second)).await;
    let branch = nursery.tree.branches()["counters/1"].clone();
    let panic = branch.last_panic.unwrap();
    assert!(panic.starts_with("spoilt at ") && panic.contains("supervision/tests.rs:"), "{panic}");
    assert_eq!(branch.last_exit.unwrap().reason, "its commit failed");
    assert_eq!((branch.restarts, branch.panics), (2, 1));
}

#[actix_rt::test]
async fn more_panics_than_allowed_go_upward() {
    let nursery = nursery(2, || Ok(3));
    nursery.supervisor.send(Start(1)).await.unwrap();
    let mut child = nursery.child(1, None).await;
    for _ in 0..2 {
        assert!(child.send(SpoilAndDie { panicking: true }).await.is_err());
        child = nursery.child(1, Some(&child)).await;
    }
    assert_eq!(*nursery.gave_up.lock().unwrap(), None);
    assert!(child.send(SpoilAndDie { panicking: true }).await.is_err());
    assert_eq!(nursery.reason().await, "counters/1: more than 2 panics in 60s");
}

/// Rows that a twin cannot load: the panic is the child's, and must not end the parent with it.
#[actix_rt::test]
async fn a_child_that_panics_while_it_loads_is_started_again() {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let nursery = nursery(5, move || {
        assert!(counted.fetch_add(1, Ordering::Relaxed) >= 3, "rows that cannot be");
        Ok(3)
    });
    nursery.supervisor.send(Start(1)).await.unwrap();
    let child = nursery.child(1, None).await;
    assert_eq!(child.send(Read).await, Ok(3));
    assert_eq!((nursery.tree.branches()["counters/1"].panics, nursery.gave_up.lock().unwrap().clone()), (3, None));
}

#[actix_rt::test]
async fn panics_while_loading_go_upward_too() {
    let loading = nursery(2, || panic!("rows that cannot be"));
    loading.supervisor.send(Start(1)).await.unwrap();
    assert_eq!(loading.reason().await, "counters/1: more than 2 panics in 60s");

    let at_once = supervised(2, Box::new(|_, _| panic!("not even a future")));
    at_once.supervisor.send(Start(1)).await.unwrap();
    assert_eq!(at_once.reason().await, "counters/1: more than 2 panics in 60s");
}

#[derive(Message)]
#[rtype(result = "()")]
struct Spoil;

impl Handler<Spoil> for Supervisor<u32, Counter> {
    type Result = ();

    fn handle(&mut self, _: Spoil, _: &mut Context<Self>) {
        panic!("a supervisor panics");
    }
}

/// Nobody would start its children again.
#[actix_rt::test]
async fn a_supervisor_that_dies_goes_upward() {
    let nursery = nursery(5, || Ok(3));
    assert!(nursery.supervisor.send(Spoil).await.is_err());
    assert_eq!(nursery.reason().await, "counters: the supervisor panicked");
}

/// A partition that another node had for a moment, while its child was dead.
#[actix_rt::test]
async fn a_child_that_is_ended_and_wanted_again_during_the_back_off_comes_once() {
    let starts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&starts);
    let nursery = nursery(5, move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(3)
    });
    nursery.supervisor.send(Start(1)).await.unwrap();
    let first = nursery.child(1, None).await;
    first.send(SpoilAndDie { panicking: false }).await.unwrap();
    while nursery.tree.branches()["counters/1"].state != BranchState::Waiting {
        tokio::task::yield_now().await;
    }
    nursery.supervisor.send(End(1)).await.unwrap();
    nursery.supervisor.send(Start(1)).await.unwrap();
    let second = nursery.child(1, None).await;
    actix_rt::time::sleep(Duration::from_millis(50)).await;
    assert!(second.connected() && nursery.registry.get(&1) == Some(second));
    assert_eq!(starts.load(Ordering::Relaxed), 2);
}

/// The end of an older child says nothing of the one that lives.
#[actix_rt::test]
async fn the_tree_shows_the_child_that_lives() {
    let nursery = nursery(5, || Ok(3));
    nursery.supervisor.send(Start(1)).await.unwrap();
    let first = nursery.child(1, None).await;
    let (ended, wanted) = (nursery.supervisor.send(End(1)), nursery.supervisor.send(Start(1)));
    let (ended, wanted) = futures_util::join!(ended, wanted);
    ended.unwrap();
    wanted.unwrap();
    nursery.child(1, Some(&first)).await;
    actix_rt::time::sleep(Duration::from_millis(50)).await;
    assert!(!first.connected());
    assert_eq!(nursery.tree.branches()["counters/1"].state, BranchState::Running);
}

#[actix_rt::test]
async fn a_child_that_cannot_load_is_tried_until_it_can() {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let nursery = nursery(0, move || {
        if counted.fetch_add(1, Ordering::Relaxed) < 5 { Err(anyhow::anyhow!("the database is away")) } else { Ok(3) }
    });
    nursery.supervisor.send(Start(1)).await.unwrap();
    let child = nursery.child(1, None).await;
    assert_eq!(child.send(Read).await, Ok(3));
    assert_eq!((tries.load(Ordering::Relaxed), nursery.gave_up.lock().unwrap().clone()), (6, None));
}

#[actix_rt::test]
async fn an_ended_child_stays_ended() {
    let nursery = nursery(5, || Ok(3));
    nursery.supervisor.send(Start(1)).await.unwrap();
    let child = nursery.child(1, None).await;
    nursery.supervisor.send(End(1)).await.unwrap();
    for _ in 0..1000 {
        if !child.connected() {
            break;
        }
        actix_rt::time::sleep(Duration::from_millis(2)).await;
    }
    actix_rt::time::sleep(Duration::from_millis(50)).await;
    assert!(!child.connected() && nursery.registry.is_empty());
    assert!(!nursery.tree.branches().contains_key("counters/1"));
}

#[test]
fn the_back_off_grows_and_is_drawn() {
    let policy =
        Policy { backoff_min: Duration::from_millis(100), backoff_max: Duration::from_secs(1), ..Policy::default() };
    for (nth, most) in [(1, 100), (2, 200), (3, 400), (5, 1000), (40, 1000)] {
        let drawn: Vec<u128> = (0..50).map(|_| policy.backoff(nth).as_millis()).collect();
        assert!(drawn.iter().all(|&ms| (most / 2..=most).contains(&ms)), "{nth}: {drawn:?}");
        assert!(drawn.iter().any(|ms| *ms != drawn[0]), "{nth}: all {}", drawn[0]);
    }
}
