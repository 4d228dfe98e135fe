// Runs one algorithm while all descriptors but `spare` are taken, says what came of it, and ends by itself.
import { closeSync, openSync, readdirSync } from 'node:fs'
import { openLauncher } from '../../dist/run/launcher.js'
import { runAlgorithm } from '../../dist/run/run.js'
import { runWarm } from '../../dist/run/warm.js'
import { openWarmSeats } from '../../dist/run/warm-seat.js'

const { spare, seconds, launched, request } = JSON.parse(process.argv[2])
const launcher = launched ? openLauncher(request.workerId) : undefined
const abort = new AbortController()
const take = () => openSync('/dev/null', 'r')
const taken = []
const fill = () => {
  try {
    for (;;) taken.push(take())
  } catch {}
}
const open = () => readdirSync('/proc/self/fd').length
async function runOnce(more) {
  if (request.algorithm.warm === undefined) return runAlgorithm({ ...request, launcher, ...more })
  const seats = openWarmSeats({ workshop: request.workdir.path, workerId: 'w1-test', slot: 1 })
  try {
    return await runWarm({ ...request, ...more, workdir: seats.openWorkdir(request.algorithm), payloadJson: '{}' })
  } finally {
    await seats.close()
  }
}
await runOnce({ signal: abort.signal }).catch(() => {})
// Two are the launcher's.
const before = open() - (launched ? 2 : 0)
fill()
for (let i = 0; i < spare; i++) closeSync(taken.pop())
const onStarted = () => {
  if (seconds) {
    fill()
    setTimeout(() => abort.abort({ kind: 'interrupted' }), 1000 * seconds)
  }
}
const came = await runOnce({ signal: abort.signal, onStarted }).catch((error) => error)
for (const fd of taken) closeSync(fd)
launcher?.close()
// Its streams are closed in the turns that follow.
await new Promise((resolve) => setTimeout(resolve, 50))
console.log(JSON.stringify({ before, after: open(), outcome: came.outcome, code: came.code, kill: came.kill }))
