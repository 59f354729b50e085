//! Bad weather between the workers and the server, by a seed.
//!
//! What can happen to a request is what can happen to one over a network, to a server that is one of
//! several: it comes late; it is refused; it is carried out, and the answer is lost. A watch breaks
//! off, or says the same thing twice. Nothing happens that the API rules out: no write is torn, no
//! watch leaves an event out without breaking.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

/// How bad it is. Probabilities are per request, or per piece of a watch.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Decides what happens when.
    pub seed: u64,
    /// A request is delayed.
    pub late: f64,
    /// By this at most.
    pub late_max: Duration,
    /// A PUT or PATCH is refused with 409, as if somebody else had written.
    pub conflict: f64,
    /// A request is refused with 500.
    pub refused: f64,
    /// A write is carried out, and answered with 504.
    pub lost: f64,
    /// A watch ends.
    pub broken: f64,
    /// A watch says the same again.
    pub stutter: f64,
}

impl Weather {
    /// Rain: a few of a hundred requests go wrong.
    pub fn rain(seed: u64) -> Weather {
        Weather {
            seed,
            late: 0.1,
            late_max: Duration::from_millis(200),
            conflict: 0.03,
            refused: 0.02,
            lost: 0.02,
            broken: 0.02,
            stutter: 0.05,
        }
    }

    /// Storm: one of four does.
    pub fn storm(seed: u64) -> Weather {
        Weather {
            seed,
            late: 0.5,
            late_max: Duration::from_secs(2),
            conflict: 0.1,
            refused: 0.08,
            lost: 0.08,
            broken: 0.08,
            stutter: 0.1,
        }
    }

    /// Hurricane: more than half of all requests do, and hardly a watch lives.
    pub fn hurricane(seed: u64) -> Weather {
        Weather {
            seed,
            late: 0.5,
            late_max: Duration::from_secs(5),
            conflict: 0.1,
            refused: 0.5,
            lost: 0.4,
            broken: 0.5,
            stutter: 0.1,
        }
    }
}

/// Puts weather between a client and a server. Clones share it.
#[derive(Clone)]
pub struct WeatherLayer(Arc<Sky>);

struct Sky {
    weather: Weather,
    random: Mutex<StdRng>,
    is_clear: AtomicBool,
    troubles: AtomicU64,
}

/// What is to happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fine,
    Conflict,
    Refused,
    Lost,
}

impl WeatherLayer {
    /// Weather as described, clear at first.
    pub fn new(weather: Weather) -> WeatherLayer {
        WeatherLayer(Arc::new(Sky {
            random: Mutex::new(StdRng::seed_from_u64(weather.seed)),
            weather,
            is_clear: AtomicBool::new(true),
            troubles: AtomicU64::new(0),
        }))
    }

    /// It begins.
    pub fn begin(&self) {
        self.0.is_clear.store(false, Ordering::Relaxed);
    }

    /// It is over.
    pub fn clear(&self) {
        self.0.is_clear.store(true, Ordering::Relaxed);
    }

    /// How much has gone wrong so far, delays not counted.
    pub fn troubles(&self) -> u64 {
        self.0.troubles.load(Ordering::Relaxed)
    }
}

impl Sky {
    fn happens(&self, probability: f64) -> bool {
        let is_clear = self.is_clear.load(Ordering::Relaxed);
        !is_clear && self.random.lock().random_bool(probability)
    }

    fn delay(&self) -> Option<Duration> {
        let late = self.happens(self.weather.late);
        late.then(|| {
            let part = self.random.lock().random::<f64>();
            self.weather.late_max.mul_f64(part)
        })
    }

    fn fate(&self, method: &Method) -> Fate {
        let changes = [Method::PUT, Method::PATCH].contains(method);
        let fate = if changes && self.happens(self.weather.conflict) {
            Fate::Conflict
        } else if self.happens(self.weather.refused) {
            Fate::Refused
        } else if *method != Method::GET && self.happens(self.weather.lost) {
            Fate::Lost
        } else {
            return Fate::Fine;
        };
        self.troubles.fetch_add(1, Ordering::Relaxed);
        fate
    }
}

impl<S> tower::Layer<S> for WeatherLayer {
    type Service = Weathered<S>;

    fn layer(&self, inner: S) -> Weathered<S> {
        Weathered {
            inner,
            sky: self.0.clone(),
        }
    }
}

/// A service behind weather.
#[derive(Clone)]
pub struct Weathered<S> {
    inner: S,
    sky: Arc<Sky>,
}

impl<S, B> tower::Service<Request<B>> for Weathered<S>
where
    S: tower::Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that was polled ready is the one to be called.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let sky = self.sky.clone();
        Box::pin(async move {
            if let Some(delay) = sky.delay() {
                tokio::time::sleep(delay).await;
            }
            let query = request.uri().query().unwrap_or_default();
            let is_watch = query
                .split('&')
                .any(|pair| pair == "watch=true" || pair == "watch=1");
            match sky.fate(request.method()) {
                Fate::Conflict => return Ok(conflict()),
                Fate::Refused => return Ok(refused()),
                Fate::Lost => {
                    inner.call(request).await?;
                    return Ok(lost());
                }
                Fate::Fine => {}
            }
            let answer = inner.call(request).await?;
            Ok(match is_watch {
                true => answer.map(|body| weathered_watch(body, sky)),
                false => answer,
            })
        })
    }
}

/// The pieces of a watch, which are whole lines, with weather.
fn weathered_watch(body: Body, sky: Arc<Sky>) -> Body {
    let pieces = futures::stream::unfold(
        (body.into_data_stream(), sky, None),
        |(mut pieces, sky, again)| async move {
            if let Some(piece) = again {
                return Some((Ok(piece), (pieces, sky, None)));
            }
            let piece = pieces.next().await?;
            if let Some(delay) = sky.delay() {
                tokio::time::sleep(delay).await;
            }
            if sky.happens(sky.weather.broken) {
                sky.troubles.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            let again = match &piece {
                Ok(piece) if sky.happens(sky.weather.stutter) => Some(piece.clone()),
                _ => None,
            };
            Some((piece, (pieces, sky, again)))
        },
    );
    Body::from_stream(pieces)
}

fn conflict() -> Response<Body> {
    let message = "Operation cannot be fulfilled: the object has been modified; please apply your changes to the latest version and try again";
    failure(StatusCode::CONFLICT, "Conflict", message)
}

fn refused() -> Response<Body> {
    let message = "Internal error occurred: the weather";
    failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
}

fn lost() -> Response<Body> {
    let message = "Timeout: request did not complete within requested timeout";
    failure(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(status.to_string()))
        .expect("the parts are valid")
}
