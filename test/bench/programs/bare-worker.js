/**
 * The least that a Node program can do with a queue and processes: for each slot reserve a job, start a process with files
 * for its streams in a new directory, delete the job. No time limit, no retry, no result, no log.
 *
 *     node bare-worker.js PORT TUBE SLOTS DIR INPUT PROGRAM
 */

import { spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync } from 'node:fs'
import { join } from 'node:path'
import FiveBeansClient from 'fivebeans/lib/client.js'

const [port, tube, slots, base, input, program] = process.argv.slice(2)
if (program === undefined) {
  console.error('usage: bare-worker.js PORT TUBE SLOTS DIR INPUT PROGRAM')
  process.exit(64)
}
const env = { PATH: process.env.PATH }
let number = 0

function connect() {
  return new Promise((resolve, reject) => {
    const client = new FiveBeansClient('127.0.0.1', Number(port))
    client.on('connect', () => resolve(client))
    client.on('error', reject)
    client.on('close', () => process.exit(1))
    client.connect()
  })
}

function ask(client, command, ...args) {
  return new Promise((resolve, reject) => {
    client[command](...args, (error, ...values) =>
      error ? reject(new Error(`${command}: ${error}`)) : resolve(values),
    )
  })
}

function runProcess() {
  const dir = join(base, String(number++))
  mkdirSync(dir)
  const stdio = [openSync(input, 'r'), ...['stdout.log', 'stderr.log'].map((name) => openSync(join(dir, name), 'wx'))]
  return new Promise((resolve, reject) => {
    const child = spawn(program, [], { stdio, env })
    for (const fd of stdio) closeSync(fd)
    child.on('error', reject)
    child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`${program} exited with ${code}`))))
  })
}

async function work() {
  const client = await connect()
  await ask(client, 'watch', tube)
  for (;;) {
    const [ticket] = await ask(client, 'reserve')
    await runProcess()
    await ask(client, 'destroy', ticket)
  }
}

await Promise.all(Array.from({ length: Number(slots) }, work))
