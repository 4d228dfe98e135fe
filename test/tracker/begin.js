// Begins an attempt, says its fence, and waits for its end.
import { openTracker } from '../../dist/tracker/tracker.js'

const [url, worker, now, uuid] = process.argv.slice(2)
const tracker = await openTracker(url)
const job = { uuid, type: 't', ticket: '1', tube: 'x', attempt: 1, maxAttempts: 5 }
console.log(await tracker.begin({ ...job, worker, run: 'r', started: now, deadline: now }, 0))
setInterval(() => {}, 1000)
