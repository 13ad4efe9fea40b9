-- dataset: silver.device_readings_hourly
-- grain: one series of one device (buffer file) in one UTC hour
-- key: [store_id, stream_id, metric_id, hour]
-- strategy: merge
-- merge: {readings: sum, minimum: least, maximum: greatest, total: sum}
-- outcome_kind: 1
-- landed: >
--   select log.stream_id,
--   (log.observed_at at time zone zones.zone)::date as business_date, count(*) as records
--   from bronze.device_readings as log
--   left join (select stream.stream_id, metadata.known_zone(stream.zone) as zone
--   from metadata.streams as stream offset 0) as zones on log.stream_id = zones.stream_id
--   where log.xid >= %(from_xid)s and log.xid < %(to_xid)s group by 1, 2
-- sla_seconds: 3600
-- limits: >
--   Append only: a reading is never changed. Cost is linear in the new readings, whatever the
--   history. Business dates use the device's present zone: a device that moves to another zone
--   within one buffer file counts its readings around midnight under the other day.
select
    log.store_id,
    log.stream_id,
    log.metric_id,
    date_bin('1 hour', log.observed_at, '2000-01-01 00:00+00') as hour,
    count(*) as readings,
    min(log.value) as minimum,
    max(log.value) as maximum,
    sum(log.value::numeric) as total
from bronze.device_readings as log
where
    log.xid >= %(from_xid)s
    and log.xid < %(to_xid)s
group by
    log.store_id,
    log.stream_id,
    log.metric_id,
    date_bin('1 hour', log.observed_at, '2000-01-01 00:00+00')
