//! The messages of metrics: packages `metrics.v1` and `collector.metrics.v1`.

use serde::{Deserialize, Serialize};

use super::{InstrumentationScope, KeyValue, Resource, double, hex, int_text, is_zero, uint_text};

/// What a collector takes: `collector.metrics.v1.ExportMetricsServiceRequest`. It answers with the same bytes as for spans, but
/// for a key of the JSON (`rejectedDataPoints`).
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExportMetricsServiceRequest {
    #[prost(message, repeated, tag = "1")]
    pub resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    pub scope_metrics: Vec<ScopeMetrics>,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub schema_url: String,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScopeMetrics {
    #[prost(message, optional, tag = "1")]
    pub scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub schema_url: String,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metric {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[prost(string, tag = "3")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unit: String,
    #[prost(oneof = "Data", tags = "5, 7, 9, 10")]
    #[serde(flatten)]
    pub data: Option<Data>,
}

/// What a [`Metric`] is.
#[derive(Clone, PartialEq, prost::Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Data {
    #[prost(message, tag = "5")]
    Gauge(Gauge),
    #[prost(message, tag = "7")]
    Sum(Sum),
    #[prost(message, tag = "9")]
    Histogram(Histogram),
    #[prost(message, tag = "10")]
    ExponentialHistogram(ExponentialHistogram),
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gauge {
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<NumberDataPoint>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sum {
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<NumberDataPoint>,
    /// 1 is delta, 2 is cumulative.
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
    #[prost(bool, tag = "3")]
    pub is_monotonic: bool,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Histogram {
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<HistogramDataPoint>,
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExponentialHistogram {
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<ExponentialHistogramDataPoint>,
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NumberDataPoint {
    #[prost(fixed64, tag = "2")]
    #[serde(with = "uint_text", skip_serializing_if = "is_unset")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "3")]
    #[serde(with = "uint_text")]
    pub time_unix_nano: u64,
    #[prost(oneof = "PointValue", tags = "4, 6")]
    #[serde(flatten)]
    pub value: Option<PointValue>,
    #[prost(message, repeated, tag = "5")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exemplars: Vec<Exemplar>,
    #[prost(message, repeated, tag = "7")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<KeyValue>,
    #[prost(uint32, tag = "8")]
    #[serde(skip_serializing_if = "is_zero")]
    pub flags: u32,
}

/// The value of a [`NumberDataPoint`].
#[derive(Clone, Copy, PartialEq, prost::Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PointValue {
    #[prost(double, tag = "4")]
    AsDouble(#[serde(with = "double")] f64),
    #[prost(sfixed64, tag = "6")]
    AsInt(#[serde(with = "int_text")] i64),
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HistogramDataPoint {
    #[prost(message, repeated, tag = "9")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<KeyValue>,
    #[prost(fixed64, tag = "2")]
    #[serde(with = "uint_text", skip_serializing_if = "is_unset")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "3")]
    #[serde(with = "uint_text")]
    pub time_unix_nano: u64,
    #[prost(fixed64, tag = "4")]
    #[serde(with = "uint_text")]
    pub count: u64,
    #[prost(double, optional, tag = "5")]
    #[serde(with = "optional_double", skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
    /// One more than bounds.
    #[prost(fixed64, repeated, tag = "6")]
    #[serde(with = "uint_texts")]
    pub bucket_counts: Vec<u64>,
    #[prost(double, repeated, tag = "7")]
    pub explicit_bounds: Vec<f64>,
    #[prost(message, repeated, tag = "8")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exemplars: Vec<Exemplar>,
    #[prost(uint32, tag = "10")]
    #[serde(skip_serializing_if = "is_zero")]
    pub flags: u32,
    #[prost(double, optional, tag = "11")]
    #[serde(with = "optional_double", skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[prost(double, optional, tag = "12")]
    #[serde(with = "optional_double", skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExponentialHistogramDataPoint {
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<KeyValue>,
    #[prost(fixed64, tag = "2")]
    #[serde(with = "uint_text", skip_serializing_if = "is_unset")]
    pub start_time_unix_nano: u64,
    #[prost(fixed64, tag = "3")]
    #[serde(with = "uint_text")]
    pub time_unix_nano: u64,
    #[prost(fixed64, tag = "4")]
    #[serde(with = "uint_text")]
    pub count: u64,
    #[prost(double, optional, tag = "5")]
    #[serde(with = "optional_double", skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
    #[prost(sint32, tag = "6")]
    pub scale: i32,
    #[prost(fixed64, tag = "7")]
    #[serde(with = "uint_text")]
    pub zero_count: u64,
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive: Option<Buckets>,
    #[prost(message, optional, tag = "9")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative: Option<Buckets>,
    #[prost(uint32, tag = "10")]
    #[serde(skip_serializing_if = "is_zero")]
    pub flags: u32,
    #[prost(message, repeated, tag = "11")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exemplars: Vec<Exemplar>,
    #[prost(double, optional, tag = "12")]
    #[serde(with = "optional_double", skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[prost(double, optional, tag = "13")]
    #[serde(with = "optional_double", skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Buckets {
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    #[prost(uint64, repeated, tag = "2")]
    #[serde(with = "uint_texts")]
    pub bucket_counts: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Exemplar {
    #[prost(message, repeated, tag = "7")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filtered_attributes: Vec<KeyValue>,
    #[prost(fixed64, tag = "2")]
    #[serde(with = "uint_text")]
    pub time_unix_nano: u64,
    #[prost(oneof = "ExemplarValue", tags = "3, 6")]
    #[serde(flatten)]
    pub value: Option<ExemplarValue>,
    #[prost(bytes = "vec", tag = "4")]
    #[serde(with = "hex", skip_serializing_if = "Vec::is_empty")]
    pub span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    #[serde(with = "hex", skip_serializing_if = "Vec::is_empty")]
    pub trace_id: Vec<u8>,
}

/// The value of an [`Exemplar`].
#[derive(Clone, Copy, PartialEq, prost::Oneof, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExemplarValue {
    #[prost(double, tag = "3")]
    AsDouble(#[serde(with = "double")] f64),
    #[prost(sfixed64, tag = "6")]
    AsInt(#[serde(with = "int_text")] i64),
}

/// A time that is not said.
fn is_unset(nanos: &u64) -> bool {
    *nanos == 0
}

/// Lists of 64-bit integers as text; numbers are read, too.
mod uint_texts {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct One(#[serde(with = "super::uint_text")] u64);

    pub(super) fn serialize<S: Serializer>(counts: &[u64], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(counts.iter().map(|n| One(*n)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        let counts = Vec::<One>::deserialize(from)?;
        Ok(counts.into_iter().map(|one| one.0).collect())
    }
}

/// A double that may not be there.
mod optional_double {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct One(#[serde(with = "super::double")] f64);

    pub(super) fn serialize<S: Serializer>(x: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        x.map(One).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        let x = Option::<One>::deserialize(from)?;
        Ok(x.map(|one| one.0))
    }
}
