/**
 * Jobs through a queue, from the moment when their tube is opened to the last deletion; and the proof that each of them
 * was done, once. They are put while the tube is paused and every slot waits, so no start-up is measured.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { hasEnded, pause, until } from './children.js'
import { cpuSecondsOf } from './proc.js'
import { newUuid } from './queue.js'

const LONG_SECONDS = 3600
const WAITING_MS = 3_000
const STALLED_MS = 30_000
const LOOK_MS = 3
/** Of the whole broker: nothing that we measure may need one of these. */
const TROUBLES = ['cmd-release', 'cmd-bury', 'job-timeouts']

/**
 * Has so many jobs done by a child that takes from this tube.
 * @returns what was done, and what is wrong with it: `faults`, one text each
 */
export async function deliver({ client }, { child, tube, slots, type, payload = '{}' }, count) {
  const uuids = Array.from({ length: count }, newUuid)
  await client.use(tube)
  await client.pauseTube(tube, LONG_SECONDS)
  const before = await countersOf(client, tube)
  const accepted = await client.put(uuids.map((uuid) => `[{"uuid":"${uuid}","type":"${type}"},${payload}]`))
  // Slots that share a connection would never be as many: then some time must do.
  const areWaiting = async () => (await client.tubeStats(tube))['current-waiting'] >= slots
  await until('slots wait', areWaiting, { child, ms: WAITING_MS }).catch(() => undefined)
  const cpuBefore = cpuSecondsOf(child.pid)
  const startedAt = performance.now()
  await client.pauseTube(tube, 0)
  await untilDeleted(client, tube, before.deleted + count, child)
  const seconds = (performance.now() - startedAt) / 1000
  const cpuAfter = cpuSecondsOf(child.pid)
  const after = await countersOf(client, tube)
  const counts = { accepted: after.accepted - before.accepted, deleted: after.deleted - before.deleted }
  const faults = []
  const expect = (what, found, expected) => {
    if (found !== expected) faults.push(`${tube}: ${what}: ${found}, expected ${expected}`)
  }
  expect('accepted', accepted, count)
  expect('accepted as the broker counts', counts.accepted, count)
  expect('deleted', counts.deleted, count)
  expect('left in the tube', after.left, 0)
  expect('releases, buries and timeouts', after.troubles - before.troubles, 0)
  return { uuids, seconds, cpuSeconds: cpuBefore === undefined ? undefined : cpuAfter - cpuBefore, counts, faults }
}

async function countersOf(client, tube) {
  const stats = await client.stats()
  const { 'total-jobs': accepted, 'cmd-delete': deleted, ...rest } = await client.tubeStats(tube)
  const left = ['ready', 'reserved', 'delayed', 'buried'].reduce((sum, state) => sum + rest[`current-jobs-${state}`], 0)
  return { accepted, deleted, left, troubles: TROUBLES.reduce((sum, key) => sum + stats[key], 0) }
}

async function untilDeleted(client, tube, wanted, child) {
  let last = 0
  let lastAt = performance.now()
  for (;;) {
    const { 'cmd-delete': deleted } = await client.tubeStats(tube)
    if (deleted >= wanted) return
    if (deleted > last) {
      last = deleted
      lastAt = performance.now()
    }
    const isStalled = performance.now() - lastAt > STALLED_MS
    if (hasEnded(child) || isStalled) {
      const why = isStalled ? `nothing was done for ${STALLED_MS / 1000} s` : 'who takes the jobs has ended'
      throw new Error(`${tube}: ${wanted - deleted} jobs are not done, and ${why}`)
    }
    await pause(LOOK_MS)
  }
}

/** What is wrong with the results of these jobs: missing, of another job, or of another attempt than the first. */
export function checkResults(results, uuids) {
  const faults = []
  for (const uuid of uuids) {
    const path = join(results, uuid.slice(0, 2), uuid, 'result.json')
    if (!existsSync(path)) faults.push(`${uuid} has no result.json`)
    else {
      const document = JSON.parse(readFileSync(path, 'utf8'))
      if (document.uuid !== uuid || document.attempt !== 1)
        faults.push(`${path} is of ${document.uuid}, attempt ${document.attempt}`)
    }
  }
  return faults
}

/** Published jobs below a folder of results, all of them. */
export function countResults(results) {
  return readdirSync(results)
    .filter((shard) => /^[0-9a-f]{2}$/.test(shard))
    .flatMap((shard) => readdirSync(join(results, shard)).map((uuid) => join(results, shard, uuid, 'result.json')))
    .filter((path) => existsSync(path)).length
}
