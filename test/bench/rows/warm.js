/** Jobs of an algorithm whose process stays, one a slot, beside the same number of slots that start a process each. */

import { spawnSync } from 'node:child_process'
import { ENVIRONMENT, findProgram } from '../children.js'
import { startBroker } from '../queue.js'
import { interleave, makeEntry } from '../rounds.js'
import { chooseCount, nothing, program, startWorker, work, writeAlgorithms } from '../worker.js'

const SLOTS = 4

export async function measure(bench) {
  const warm = {
    'warm-node': {
      manifest: 'command: ["{node}", "{dir}/warm.mjs"]\nmode: warm\n',
      files: { 'warm.mjs': program('warm.js') },
    },
  }
  const python = findPython()
  if (python === undefined) bench.leaveOut('warm jobs in Python: no python3')
  else {
    const command = JSON.stringify([python, '{dir}/warm.py'])
    warm['warm-python'] = { manifest: `command: ${command}\nmode: warm\n`, files: { 'warm.py': program('warm.py') } }
  }
  const broker = await startBroker()
  const algorithms = writeAlgorithms({ nothing: nothing(), ...warm })
  const workers = [await startWorker(broker, { name: 'qworker, a process a job', slots: SLOTS, algorithms })]
  const { usable, problems } = workers[0]
  for (const type of Object.keys(warm)) {
    if (usable.includes(type)) {
      const name = `qworker, ${type.replace('-', ' in ')}`
      workers.push(await startWorker(broker, { name, slots: SLOTS, algorithms, type }))
    } else bench.leaveOut(`${type}: this worker refuses its manifest${explain(problems, type)}`)
  }
  const contenders = []
  for (const worker of workers.length > 1 ? workers : []) {
    const count = await chooseCount(bench, (jobs) => work(bench, broker, worker, jobs))
    contenders.push({ run: () => work(bench, broker, worker, count) })
  }
  const samples = await interleave(bench, contenders)
  if (samples.length === 0) return undefined
  const [cold, ...others] = samples.map((each) => each.map(({ rate }) => rate))
  const first = makeEntry(workers[0].name, 'jobs/s', cold, { slots: SLOTS })
  const options = { slots: SLOTS, beside: first }
  return {
    title: 'jobs of an algorithm whose process stays (mode: warm)',
    how: [],
    entries: [first, ...others.map((rates, i) => makeEntry(workers[i + 1].name, 'jobs/s', rates, options))],
  }
}

/** The first clause of what the worker said, without the path. */
function explain(problems, type) {
  const [, reason] = /algorithm\.yaml: ([^;]+)/.exec(problems.find((it) => it.includes(type)) ?? '') ?? []
  return reason === undefined ? '' : ` (${reason})`
}

/** The interpreter itself: what stands in PATH may be a script that chooses one. */
function findPython() {
  if (findProgram('python3') === undefined) return undefined
  const { status, stdout } = spawnSync('python3', ['-c', 'import sys; print(sys.executable)'], {
    env: ENVIRONMENT,
    encoding: 'utf8',
  })
  return status === 0 ? stdout.trim() : undefined
}
