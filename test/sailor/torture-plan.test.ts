import { expect, test } from 'vitest'
import { parsePackage } from '../../src/job/package.ts'
import { deadlineOf } from '../../src/sailor/torture/deadline.ts'
import { planFaults, planJob } from '../../src/sailor/torture/plan.ts'
import { readOrders } from '../../src/sailor/voyage.ts'

const ALL = { isPrivate: true, hasS3: true, hasSmallDisk: true }
const jobs = Array.from({ length: 2000 }, (_, i) => planJob(7, i))

test('the same seed makes the same plan, another seed another', () => {
  expect(planFaults(7, 1_200_000, ALL)).toEqual(planFaults(7, 1_200_000, ALL))
  expect(planFaults(8, 1_200_000, ALL)).not.toEqual(planFaults(7, 1_200_000, ALL))
  expect(planJob(7, 123)).toEqual(planJob(7, 123))
  expect(planJob(8, 123).body).not.toEqual(planJob(7, 123).body)
})

test('half a minute meets every kind of fault, and each fault is over before the end', () => {
  const faults = planFaults(1, 30_000, ALL)
  expect(new Set(faults.map(({ kind }) => kind)).size).toBe(18)
  for (const { atMs, durationMs } of faults) expect(atMs + durationMs).toBeLessThanOrEqual(30_000)
})

test('beside a deployment no broker is killed and no disk is filled, and without a bucket S3 is left alone', () => {
  const kinds = planFaults(1, 600_000, { isPrivate: false, hasS3: false, hasSmallDisk: false }).map(({ kind }) => kind)
  expect(new Set(kinds)).toEqual(
    new Set(['worker-kill', 'worker-term', 'worker-stop', 'net-cut', 'net-delay', 'net-freeze', 'net-half-open']),
  )
})

test('each job has a uuid of its own; a sailor can read its orders, and what must be refused is refused', () => {
  expect(new Set(jobs.map(({ id }) => id)).size).toBe(jobs.length)
  for (const { id, expects, body } of jobs) {
    if (expects === 'sailor') {
      const { header, payloadJson } = parsePackage(body)
      expect(header).toMatchObject({ uuid: id, type: expect.stringMatching(/^drunken_sailor(_warm)?$/) })
      expect(readOrders(payloadJson).kind).toBe('orders')
    } else if (!body.includes('no_such_')) expect(() => parsePackage(body), body.toString()).toThrow()
  }
})

test('the mix has everything: wild sailors, warm ones, refused packages, delays, priorities, uuids that are put twice', () => {
  expect(jobs.filter(({ body }) => body.includes('"wild":true')).length).toBeGreaterThan(600)
  expect(jobs.filter(({ body }) => body.includes('drunken_sailor_warm')).length).toBeGreaterThan(60)
  expect(jobs.filter(({ expects }) => expects === 'refused').length).toBeGreaterThan(60)
  expect(jobs.filter(({ delaySeconds }) => delaySeconds > 0).length).toBeGreaterThan(100)
  expect(jobs.filter(({ copies }) => copies === 2).length).toBeGreaterThan(50)
  expect(new Set(jobs.map(({ ttrSeconds }) => ttrSeconds))).toEqual(new Set([1, 2, 3]))
})

const run = { started: 100, ttrSeconds: 1 }
const none = { worker: [], guard: [] }
const undisturbed = { stops: [], killedAt: undefined }

test('a run must be gone 2 s after TTR + GRACE_TIME', () => {
  expect(deadlineOf(run, 1, undisturbed, none)).toBe(104)
})

test('the time in which its worker was stopped, 2 s to wake up, and stalls of the machine do not count', () => {
  expect(deadlineOf(run, 1, { ...undisturbed, stops: [{ from: 101, to: 103 }] }, none)).toBe(108)
  expect(deadlineOf(run, 1, { ...undisturbed, stops: [{ from: 101, to: undefined }] }, none)).toBe(
    Number.POSITIVE_INFINITY,
  )
  expect(deadlineOf(run, 1, { ...undisturbed, stops: [{ from: 90, to: 99 }] }, none)).toBe(105)
  expect(deadlineOf(run, 1, { ...undisturbed, stops: [{ from: 105, to: 109 }] }, none)).toBe(104)
  expect(deadlineOf(run, 1, undisturbed, { ...none, worker: [{ from: 99, to: 100.5 }] })).toBe(104.5)
})

test('a worker that is killed takes its runs along within 2 s, stopped or not', () => {
  expect(deadlineOf(run, 1, { stops: [], killedAt: 100.5 }, none)).toBe(102.5)
  expect(deadlineOf(run, 1, { stops: [{ from: 100, to: 101 }], killedAt: 101 }, none)).toBe(103)
  expect(deadlineOf(run, 1, { stops: [], killedAt: 110 }, none)).toBe(104)
})

test('pauses that overlap count once, and a killed worker has those of its guard', () => {
  const pauses = [
    { from: 101, to: 102 },
    { from: 101.5, to: 102.5 },
  ]
  expect(deadlineOf(run, 1, undisturbed, { worker: pauses, guard: [] })).toBe(105.5)
  expect(deadlineOf(run, 1, { stops: [], killedAt: 101 }, { worker: [], guard: pauses })).toBe(104)
  expect(deadlineOf(run, 1, { stops: [], killedAt: 101 }, { worker: pauses, guard: [] })).toBe(103)
})
