/** What it costs a worker to hold memory: a process is started by one that has more to copy. */

import { pathToFileURL } from 'node:url'
import { startBroker } from '../queue.js'
import { interleave, makeEntry } from '../rounds.js'
import { chooseCount, nothing, program, startWorker, work, writeAlgorithms } from '../worker.js'

const BALLAST_MB = 500
const USUAL_SLOTS = 4

export async function measure(bench) {
  const broker = await startBroker()
  const algorithms = writeAlgorithms({ nothing: nothing() })
  const slots = bench.bestSlots ?? USUAL_SLOTS
  const ballast = {
    env: { BALLAST_MB: String(BALLAST_MB) },
    nodeArgs: ['--import', pathToFileURL(program('ballast.js')).href],
  }
  const workers = [
    await startWorker(broker, { name: 'qworker', slots, algorithms }),
    await startWorker(broker, { name: `qworker, ${BALLAST_MB} MB more`, slots, algorithms, ...ballast }),
  ]
  const contenders = []
  for (const worker of workers) {
    const count = await chooseCount(bench, (jobs) => work(bench, broker, worker, jobs))
    contenders.push({ run: () => work(bench, broker, worker, count) })
  }
  const samples = await interleave(bench, contenders)
  const rates = samples.map((each) => each.map(({ rate }) => rate))
  const plain = makeEntry(workers[0].name, 'jobs/s', rates[0], { slots })
  return {
    title: `no-op jobs of a worker that holds ${BALLAST_MB} MB more`,
    how: [],
    entries: [plain, makeEntry(workers[1].name, 'jobs/s', rates[1], { slots, beside: plain })],
  }
}
