/** A real worker to be measured: `bin/qworker`, with its log in a file and a tube and folders of its own. */

import { chmodSync, copyFileSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ENVIRONMENT, findProgram, makeFolder, PROGRAMS, PROJECT, startProcess, until } from './children.js'
import { checkResults, countResults, deliver } from './delivery.js'

const MIN_JOBS = { quick: 20, usual: 60 }
const MAX_JOBS = 20_000
const KILOBYTE_RESULT = 700

let tubes = 0

/** Folders of algorithms by name: a manifest, and files. */
export function writeAlgorithms(algorithms) {
  const dir = makeFolder('algorithms')
  for (const [name, { manifest, files = {} }] of Object.entries(algorithms)) {
    mkdirSync(join(dir, name))
    writeFileSync(join(dir, name, 'algorithm.yaml'), manifest)
    for (const [file, source] of Object.entries(files)) {
      copyFileSync(source, join(dir, name, file))
      chmodSync(join(dir, name, file), 0o755)
    }
  }
  return dir
}

/** Does nothing: its result is null. */
export const nothing = () => ({ manifest: `command: [${JSON.stringify(findProgram('true'))}]\n` })

/** Prints a document of such a size that its result.json has about 1 KB. */
export function kilobyte() {
  const source = join(makeFolder('kilobyte'), 'result.json')
  writeFileSync(source, `${JSON.stringify({ text: 'k'.repeat(KILOBYTE_RESULT) })}\n`)
  return {
    manifest: `command: [${JSON.stringify(findProgram('cat'))}, "{dir}/result.json"]\n`,
    files: { 'result.json': source },
  }
}

export const program = (name) => join(PROGRAMS, name)

/**
 * Starts a worker and waits until it is ready.
 * `env` is added to its environment, `nodeArgs` to the command line of Node.
 */
export async function startWorker(broker, { name, slots, algorithms, type = 'nothing', env = {}, nodeArgs = [] }) {
  const tube = `${name.replaceAll(/[^a-z0-9]+/gi, '-')}-${++tubes}`
  const results = makeFolder('results')
  const log = join(makeFolder('log'), 'log')
  const fd = openSync(log, 'w')
  const child = startProcess(process.execPath, [...nodeArgs, join(PROJECT, 'bin', 'qworker')], {
    env: {
      ...ENVIRONMENT,
      BEANSTALK_SERVER: '127.0.0.1',
      BEANSTALK_PORT: String(broker.port),
      TUBES: tube,
      CONCURRENCY: String(slots),
      RESULT_BASEDIR: results,
      ALGORITHM_DIRS: algorithms,
      HTTP_PORT: '0',
      LOG_FORMAT: 'json',
      ...env,
    },
    stdio: ['ignore', fd, fd],
  })
  const said = () => readFileSync(log, 'utf8')
  const ready = await until('the worker is ready', () => /^.*"event":"worker_ready".*$/m.exec(said()), { child }).catch(
    (error) => {
      throw new Error(`${error.message}\n${said().slice(-2000)}`)
    },
  )
  const { http, algorithms: usable } = JSON.parse(ready[0])
  const problems = [...said().matchAll(/"event":"algorithm_problem".*?"problem":"((?:[^"\\]|\\.)*)"/g)].map(
    ([, it]) => it,
  )
  return { name, slots, type, child, tube, results, url: http, usable, problems, log, published: 0 }
}

/** Has so many jobs done, and checks that each was published once; faults go to the benchmark. */
export async function work(bench, broker, worker, count, payload) {
  const { uuids, seconds, cpuSeconds, counts, faults } = await deliver(broker, { ...worker, payload }, count)
  worker.published += count
  const missing = checkResults(worker.results, uuids)
  faults.push(...missing)
  const published = countResults(worker.results)
  if (published !== worker.published) faults.push(`${worker.tube}: ${published} published of ${worker.published}`)
  const { jobs } = await (await fetch(`${worker.url}healthz`)).json()
  if (jobs.completed !== worker.published)
    faults.push(`${worker.tube}: ${jobs.completed} completed of ${worker.published}: lost, or done twice`)
  bench.check(worker.name, { ...counts, published: count - missing.length }, faults)
  return { uuids, seconds, rate: count / seconds, cpuPer1000: perThousand(cpuSeconds, count) }
}

export const perThousand = (cpuSeconds, count) => (cpuSeconds === undefined ? undefined : (cpuSeconds / count) * 1000)

/** V8 compiles what runs often: a daemon is to be measured as it is for the rest of its life. */
const WARMING_JOBS = 1000

/** How many jobs take about as long as a round should; what is new is warm then. */
export async function chooseCount(bench, run) {
  const least = bench.quick ? MIN_JOBS.quick : MIN_JOBS.usual
  if (!bench.quick) await run(WARMING_JOBS)
  const { rate } = await run(least)
  return Math.min(MAX_JOBS, Math.max(least, Math.round((rate * bench.seconds) / 20) * 20))
}
