/** What a worker holds after many jobs. `npm run soak` looks closer. */

import { memoryMb } from '../proc.js'
import { startBroker } from '../queue.js'
import { makeEntry } from '../rounds.js'
import { nothing, startWorker, work, writeAlgorithms } from '../worker.js'

const SLOTS = 8
const BATCH = 500
/** Where memory is looked at first, and with --quick at last. */
const EARLY = 2_000

export async function measure(bench) {
  const jobs = bench.quick ? EARLY : 50_000
  const broker = await startBroker()
  const algorithms = writeAlgorithms({ nothing: nothing() })
  const worker = await startWorker(broker, { name: 'qworker', slots: SLOTS, algorithms })
  const { pid } = worker.child
  if (memoryMb(pid, 'VmRSS') === undefined) {
    bench.leaveOut('memory: no /proc')
    return undefined
  }
  const entries = [makeEntry('VmRSS, ready', 'MB', [memoryMb(pid, 'VmRSS')], { slots: SLOTS })]
  const look = () => {
    const after = `after ${worker.published.toLocaleString('en-US')} jobs`
    for (const key of ['VmRSS', 'VmHWM'])
      entries.push(makeEntry(`${key} ${after}`, 'MB', [memoryMb(pid, key)], { slots: SLOTS }))
  }
  while (worker.published < jobs) {
    await work(bench, broker, worker, Math.min(BATCH, jobs - worker.published))
    if (performance.now() > bench.deadline) break
    if (worker.published === EARLY && jobs > EARLY) look()
  }
  look()
  return {
    title: 'memory of a worker',
    how: bench.quick ? [`after ${worker.published.toLocaleString('en-US')} jobs only; 50,000 without --quick`] : [],
    entries,
  }
}
