// What the publication of a small job costs in the local store: CPU time of the process, kernel included, since the wall
// clock tells more of the disk and of who else uses it.
//     npm run build && node test/bench/store.js [jobs] [in flight] [folder]
import { randomUUID } from 'node:crypto'
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isPresent, makeBrief, ownPresence } from '../../dist/run/presence.js'
import { openLocalStore } from '../../dist/store/store.js'

const JOBS = Number(process.argv[2] ?? 2_000)
const IN_FLIGHT = Number(process.argv[3] ?? 1)
const ROUNDS = 5
const STATUS = 's'.repeat(700)
const RESULT = 'r'.repeat(400)

// Not removed: creating files near many that were just deleted is slow for minutes (ext4).
const base = mkdtempSync(join(process.argv[4] ?? tmpdir(), 'qworker-bench-store-'))
const staging = join(base, '.work', 'worker')
mkdirSync(staging, { recursive: true })
const store = await openLocalStore(base, { identity: makeBrief(ownPresence()), stateOf: isPresent, staging })

/** A run that wrote nothing. */
function makeRun() {
  const uuid = randomUUID().replaceAll('-', '')
  const logs = ['stdout.log', 'stderr.log'].map((name) => [name, join(staging, uuid, name)])
  mkdirSync(join(staging, uuid))
  for (const [, path] of logs) writeFileSync(path, '')
  return { uuid, files: new Map(logs) }
}

async function publish({ uuid, files }) {
  for (const name of ['result.json', 'status.json']) await store.read(uuid, name)
  await store.prepare(uuid)
  const done = await store.publish({ uuid, files, status: STATUS, result: RESULT }, async () => true)
  if (!done) throw new Error(`${uuid} was not published`)
}

/** Milliseconds for each job. */
async function measure(count) {
  const runs = Array.from({ length: count }, makeRun)
  const work = async () => {
    for (let run = runs.pop(); run !== undefined; run = runs.pop()) await publish(run)
  }
  const [before, began] = [process.cpuUsage(), performance.now()]
  await Promise.all(Array.from({ length: IN_FLIGHT }, work))
  const { user, system } = process.cpuUsage(before)
  return { user: user / count / 1000, system: system / count / 1000, wall: (performance.now() - began) / count }
}

await measure(JOBS / ROUNDS)
for (let i = 0; i < ROUNDS; i++) {
  const { user, system, wall } = await measure(JOBS / ROUNDS)
  const parts = `user ${user.toFixed(3)}, system ${system.toFixed(3)}`
  console.log(
    `${(user + system).toFixed(3)} ms of CPU a publication (${parts}), ${wall.toFixed(3)} ms of the wall clock`,
  )
}
console.log(`left in ${base}`)
