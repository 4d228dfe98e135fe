/**
 * `npm run bench`: this installation beside the machine's floor and other programs, in one run. Each round does every
 * contender once, and checks that each job was accepted, published and deleted once; a run where that fails ends with 1.
 */

import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { cpus, loadavg, release, tmpdir, totalmem, type } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { endEverything, endProcesses, fileMicroseconds, PROJECT } from './children.js'
import { brokerKind } from './queue.js'
import { formatTable } from './table.js'

/** To change what the JSON file holds: count on, and keep the old keys where they still say the same. */
const FORMAT = 1
const ROWS = ['jobs', 'ballast', 'latency', 'warm', 'puts', 'http', 'start', 's3', 'memory', 'broker']
const USUAL = { rounds: 5, seconds: 2 }
const QUICK = { rounds: 3, seconds: 0.3 }
/** What the rows of a quick run have together; a round that has begun goes to its end. */
const QUICK_MS = 45_000
const EXIT = { ok: 0, failed: 1, usage: 64 }
const SHOWN_FAULTS = 10
const SLOW_FILES_US = 400

const HELP = `Usage: npm run bench -- [options]

Measures this installation beside the machine's floor and what else is installed: medians of interleaved rounds.

  --quick        fewer jobs, rounds and slot counts: less than a minute
  --rows A,B     only these: ${ROWS.join(' ')}
  --rounds N     rounds of each row (${USUAL.rounds}; with --quick ${QUICK.rounds}); start has three times as many
  --json FILE    where the numbers go; default: a new file in ${tmpdir()}
  --help

Folders are made in ${tmpdir()}; TMPDIR names another place.

Exit codes: 0 done, 1 a job was lost, done twice or not published, or a row failed, 64 usage, 130 Ctrl-C.
`

let isStopping = false

function refuse(message) {
  console.error(`bench: ${message}; see --help`)
  process.exit(EXIT.usage)
}

function readOptions() {
  const options = {
    quick: { type: 'boolean', default: false },
    rows: { type: 'string', default: ROWS.join(',') },
    rounds: { type: 'string' },
    json: { type: 'string' },
    help: { type: 'boolean', default: false },
  }
  let values
  try {
    values = parseArgs({ options }).values
  } catch (error) {
    return refuse(error.message)
  }
  const { quick, rows, rounds, json, help } = values
  const wanted = rows.split(',')
  const unknown = wanted.find((row) => !ROWS.includes(row))
  if (unknown !== undefined) refuse(`--rows: there is no row ${JSON.stringify(unknown)}; there are ${ROWS.join(' ')}`)
  if (rounds !== undefined && !/^[1-9]\d{0,2}$/.test(rounds)) refuse(`--rounds: 1 to 999 is expected; it is ${rounds}`)
  return {
    ...{ quick, help, json },
    rows: ROWS.filter((row) => wanted.includes(row)),
    ...(quick ? QUICK : USUAL),
    ...(rounds === undefined ? {} : { rounds: Number(rounds) }),
    // Who names a number of rounds gets it.
    isHurried: quick && rounds === undefined,
  }
}

function describeMachine() {
  const commit = execFileSync(process.execPath, [join(PROJECT, 'bin', 'qworker'), '--version'], { encoding: 'utf8' })
  const [cpu] = cpus()
  return {
    qworker: commit.trim(),
    node: process.version,
    broker: brokerKind(),
    system: `${type()} ${release()}`,
    processor: cpu?.model ?? 'unknown',
    processors: cpus().length,
    memory_mb: Math.round(totalmem() / 2 ** 20),
    load_average: loadavg()[0],
    files_us: Math.round(fileMicroseconds()),
  }
}

/** What a row gets: how much to do, and where to tell what it found. */
function openBench({ quick, rounds, seconds }) {
  const bench = {
    quick,
    rounds,
    /** of one round of one contender */
    seconds,
    row: undefined,
    /** performance.now() when this row should come to its end */
    deadline: Number.POSITIVE_INFINITY,
    leftOut: [],
    faults: [],
    checks: [],
    leaveOut(text) {
      if (!bench.leftOut.includes(text)) bench.leftOut.push(text)
    },
    /** What was counted in one round of a contender; `faults` are told, and fail the run. */
    check(name, counts, faults) {
      bench.checks.push({ row: bench.row, name, ...counts, ok: faults.length === 0 })
      bench.faults.push(...faults.map((fault) => `${bench.row}: ${fault}`))
    },
  }
  return bench
}

async function measureRows(bench, { rows, isHurried }) {
  const measured = []
  const began = performance.now()
  for (const [i, row] of rows.entries()) {
    bench.row = row
    if (isHurried) bench.deadline = began + (QUICK_MS * (i + 1)) / rows.length
    const startedAt = performance.now()
    process.stderr.write(`${row} ...`)
    try {
      const { measure } = await import(`./rows/${row}.js`)
      const result = await measure(bench)
      if (result !== undefined) measured.push({ row, ...result })
    } catch (error) {
      bench.faults.push(`${row}: ${error.stack}`)
    }
    // Whoever stops us ends the process; what a row comes to meanwhile is not told.
    if (isStopping) await new Promise(() => undefined)
    await endProcesses()
    process.stderr.write(` ${((performance.now() - startedAt) / 1000).toFixed(1)} s\n`)
  }
  return measured
}

function describeChecks(checks) {
  const wrong = checks.filter(({ ok }) => !ok).length
  const ours = checks.filter(({ published }) => published !== undefined)
  const counts = ['accepted', 'published', 'deleted'].map((key) => {
    const sum = ours.reduce((total, check) => total + check[key], 0)
    return `${key} ${sum.toLocaleString('en-US')}`
  })
  return `${checks.length} rounds checked, ${wrong === 0 ? 'all right' : `${wrong} wrong`}; jobs of workers: ${counts.join(', ')}`
}

function report(bench, machine, measured) {
  console.log(
    `${machine.qworker}, Node ${machine.node}, ${machine.processors} x ${machine.processor}, ${machine.system}; medians of ${bench.rounds} ${bench.rounds === 1 ? 'round' : 'rounds'}\n`,
  )
  if (machine.files_us > SLOW_FILES_US)
    console.log(
      `slow now: ${machine.files_us} us for a folder with two files (50 to 150 are usual): this machine is busy, or a large tree was just deleted from its disk; wait, or set TMPDIR\n`,
    )
  if (measured.length > 0) console.log(formatTable(measured))
  if (bench.leftOut.length > 0) console.log(`\nleft out: ${bench.leftOut.join('; ')}`)
  console.log(`\n${describeChecks(bench.checks)}`)
  for (const fault of bench.faults.slice(0, SHOWN_FAULTS)) console.log(`FAULT ${fault}`)
  if (bench.faults.length > SHOWN_FAULTS) console.log(`and ${bench.faults.length - SHOWN_FAULTS} more faults`)
}

async function main() {
  const options = readOptions()
  if (options.help) {
    process.stdout.write(HELP)
    return EXIT.ok
  }
  const machine = describeMachine()
  const bench = openBench(options)
  const started = new Date()
  if (machine.broker === 'embedded') bench.leaveOut('beanstalkd: not installed; the embedded broker takes its place')
  const rows = await measureRows(bench, options)
  report(bench, machine, rows)
  const file = options.json ?? join(tmpdir(), `qworker-bench-${started.toISOString().replaceAll(/[:.]/g, '-')}.json`)
  const { quick, rounds, leftOut: left_out, faults, checks } = bench
  const document = {
    format: FORMAT,
    started,
    finished: new Date(),
    quick,
    rounds,
    machine,
    left_out,
    faults,
    rows,
    checks,
  }
  writeFileSync(file, `${JSON.stringify(document, null, 1)}\n`)
  console.log(`numbers: ${file}`)
  return faults.length === 0 ? EXIT.ok : EXIT.failed
}

// Not once: a terminal and npm each send one, and the second would cut the cleaning short.
for (const [signal, code] of Object.entries({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }))
  process.on(signal, () => {
    isStopping = true
    endEverything().finally(() => process.exit(code))
  })

try {
  process.exitCode = await main()
} finally {
  await endEverything()
}
