/** The floor: what this machine can do at most. A C program where there is a compiler, else xargs. */

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { findProgram, makeFolder, runProcess } from './children.js'
import { program } from './worker.js'

const compiled = new Map()

/** The path of a C program of ours, built with -O2; undefined without a compiler. */
export async function compileProgram(bench, name) {
  if (compiled.has(name)) return compiled.get(name)
  const compiler = findProgram('cc') ?? findProgram('gcc')
  let path
  if (compiler === undefined) bench.leaveOut('floor in C, clock in C: no cc (xargs and sh stand in for them)')
  else {
    path = join(makeFolder('compiled'), name)
    await runProcess(compiler, ['-O2', '-o', path, program(`${name}.c`)])
  }
  compiled.set(name, path)
  return path
}

export function emptyInput() {
  const path = join(makeFolder('input'), 'input.json')
  writeFileSync(path, '{}')
  return path
}

/** `run(count, slots)`: no-op processes, each with files for its streams; undefined when nothing can stand for it. */
export async function openFloor(bench) {
  const floor = await compileProgram(bench, 'floor')
  const noop = findProgram('true')
  if (floor === undefined) {
    const xargs = openXargs()
    return xargs && { name: `floor (${xargs.name})`, run: xargs.run }
  }
  return { name: 'floor', run: runsOf(floor, 'run', noop) }
}

/**
 * The same, with two documents for each process, and all of it durable before its slot goes on: what a program could
 * reach that does nothing but start processes and keep what came of them. Only in C.
 */
export async function openDurableFloor(bench) {
  const floor = await compileProgram(bench, 'floor')
  return floor && { name: 'floor, results durable', run: runsOf(floor, 'publish', findProgram('true')) }
}

function runsOf(floor, mode, noop) {
  const input = emptyInput()
  return async (count, slots) => {
    const args = [mode, makeFolder('floor'), String(count), String(slots), input, noop]
    const { stdout } = await runProcess(floor, args)
    const { seconds, cpu_seconds: cpuSeconds } = JSON.parse(stdout)
    return { rate: count / seconds, cpuPer1000: (cpuSeconds / count) * 1000 }
  }
}

function numbersFile(count) {
  const path = join(makeFolder('numbers'), 'numbers')
  writeFileSync(path, Array.from({ length: count }, (_, i) => `${i}\n`).join(''))
  return path
}

/** No queue, no files: what is started is told apart by its argument. */
export function openXargs() {
  const xargs = findProgram('xargs')
  if (xargs === undefined) return undefined
  return {
    name: 'xargs -P',
    async run(count, slots) {
      const args = ['-n', '1', '-P', String(slots), findProgram('true')]
      const { seconds } = await runProcess(xargs, args, { input: numbersFile(count) })
      return { rate: count / seconds }
    },
  }
}

/** No queue; its own start is measured by one job, and taken off. */
export function openParallel(bench) {
  const parallel = findProgram('parallel')
  if (parallel === undefined) {
    bench.leaveOut('GNU parallel: not installed')
    return undefined
  }
  const home = makeFolder('home')
  const time = async (count, slots) => {
    const env = { PATH: process.env.PATH, HOME: home, LANG: 'C' }
    const args = ['--will-cite', '-j', String(slots), findProgram('true')]
    return (await runProcess(parallel, args, { env, input: numbersFile(count) })).seconds
  }
  return {
    name: 'GNU parallel',
    async run(count, slots) {
      const once = await time(1, slots)
      return { rate: (count - 1) / ((await time(count, slots)) - once) }
    },
  }
}
