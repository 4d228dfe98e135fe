// A warm algorithm: a line in for each job, a line out.
import { createInterface } from 'node:readline'

for await (const line of createInterface({ input: process.stdin })) {
  const { uuid, attempt } = JSON.parse(line)
  process.stdout.write(`${JSON.stringify({ uuid, attempt, result: null })}\n`)
}
