/** No-op jobs a second, beside what the machine can do and what others do. */

import { readdirSync } from 'node:fs'
import { ENVIRONMENT, findProgram, makeFolder, startProcess } from '../children.js'
import { deliver } from '../delivery.js'
import { emptyInput, openDurableFloor, openFloor, openParallel, openXargs } from '../floor.js'
import { memoryMb } from '../proc.js'
import { brokerKind, startBroker } from '../queue.js'
import { interleave, makeEntry, median } from '../rounds.js'
import { chooseCount, nothing, perThousand, program, startWorker, work, writeAlgorithms } from '../worker.js'

export async function measure(bench) {
  const broker = await startBroker()
  const algorithms = writeAlgorithms({ nothing: nothing() })
  const contenders = []
  const floor = await openFloor(bench)
  const cmdstalk = findProgram('cmdstalk')
  if (cmdstalk === undefined) bench.leaveOut('cmdstalk: not installed')
  const others = [await openDurableFloor(bench), openParallel(bench), openXargs()].filter((it) => it !== undefined)
  // Where xargs is the floor it is no peer as well.
  const alone = [...(floor === undefined ? [] : [floor]), ...others.filter(({ name }) => !floor?.name.includes(name))]
  for (const slots of bench.quick ? [1, 4] : [1, 2, 4, 8]) {
    const worker = await startWorker(broker, { name: 'qworker', slots, algorithms })
    contenders.push({ name: 'qworker', slots, worker, do: (count) => work(bench, broker, worker, count) })
    const bare = startBare(bench, broker, slots)
    contenders.push({ name: 'bare Node loop', slots, do: (count) => bare.run(count) })
    if (cmdstalk !== undefined) {
      const other = startCmdstalk(bench, broker, cmdstalk, slots)
      contenders.push({ name: 'cmdstalk', slots, do: (count) => other.run(count) })
    }
    for (const { name, run } of alone) contenders.push({ name, slots, do: (count) => run(count, slots) })
  }
  for (const contender of contenders) {
    const count = await chooseCount(bench, contender.do)
    contender.run = () => contender.do(count)
  }
  const samples = await interleave(bench, contenders)
  const peaks = contenders.map(({ worker }) => worker && memoryMb(worker.child.pid, 'VmHWM'))
  bench.bestSlots = bestSlots(contenders, samples)
  return makeRow(contenders, samples, peaks, floor?.name)
}

function bestSlots(contenders, samples) {
  const workers = contenders
    .map(({ worker, slots }, i) => ({ worker, slots, rate: median(samples[i].map(({ rate }) => rate)) }))
    .filter(({ worker }) => worker !== undefined)
  return workers.reduce((best, each) => (each.rate > best.rate ? each : best)).slots
}

function makeRow(contenders, samples, peaks, floorName) {
  const entries = []
  const valuesOf = (i, key) => samples[i].map((sample) => sample[key])
  const rateOf = (i, options) =>
    makeEntry(contenders[i].name, 'jobs/s', valuesOf(i, 'rate'), { slots: contenders[i].slots, ...options })
  const floors = new Map()
  contenders.forEach(({ name, slots }, i) => {
    if (name === floorName) floors.set(slots, rateOf(i))
  })
  const order = [...new Set(contenders.map(({ name }) => name))]
  for (const wanted of order) {
    contenders.forEach(({ name, slots }, i) => {
      if (name !== wanted) return
      entries.push(name === floorName ? floors.get(slots) : rateOf(i, { beside: floors.get(slots) }))
    })
  }
  for (const wanted of order) {
    contenders.forEach(({ name, slots }, i) => {
      if (name === wanted)
        entries.push(makeEntry(`${name}, CPU per 1,000 jobs`, 's', valuesOf(i, 'cpuPer1000'), { slots }))
    })
  }
  contenders.forEach(({ name, slots }, i) => {
    entries.push(makeEntry(`${name}, peak memory`, 'MB', [peaks[i]], { slots }))
  })
  return {
    title: `no-op jobs, ${brokerKind()} as the broker`,
    how: [
      'put while the tube is paused and all slots wait; from opening the tube to the last deletion',
      'CPU: of the program with all that it started, without the broker',
    ],
    entries: entries.filter((entry) => entry !== undefined),
  }
}

/** Its processes leave a folder each, which are counted. */
function startBare(bench, broker, slots) {
  const dir = makeFolder('bare')
  const tube = `bare-${slots}`
  const args = [program('bare-worker.js'), broker.port, tube, slots, dir, emptyInput(), findProgram('true')].map(String)
  const child = startProcess(process.execPath, args)
  let done = 0
  return {
    async run(count) {
      const { seconds, cpuSeconds, counts, faults } = await deliver(
        broker,
        { child, tube, slots, type: 'nothing' },
        count,
      )
      done += count
      const started = readdirSync(dir).length
      if (started !== done) faults.push(`${tube}: ${started} processes for ${done} jobs`)
      bench.check('bare Node loop', counts, faults)
      return { rate: count / seconds, cpuPer1000: perThousand(cpuSeconds, count) }
    },
  }
}

/** It ends when a command ends without having read its stdin: so the command reads it. */
function startCmdstalk(bench, broker, cmdstalk, slots) {
  const tube = `cmdstalk-${slots}`
  const flags = { address: `127.0.0.1:${broker.port}`, tubes: tube, 'per-tube': slots, cmd: 'cat > /dev/null' }
  const args = Object.entries(flags).map(([key, value]) => `-${key}=${value}`)
  const child = startProcess(cmdstalk, args, { env: ENVIRONMENT, stdio: ['ignore', 'ignore', 'ignore'] })
  return {
    async run(count) {
      const { seconds, cpuSeconds, counts, faults } = await deliver(
        broker,
        { child, tube, slots, type: 'nothing' },
        count,
      )
      bench.check('cmdstalk', counts, faults)
      return { rate: count / seconds, cpuPer1000: perThousand(cpuSeconds, count) }
    },
  }
}
