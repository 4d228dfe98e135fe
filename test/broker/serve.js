// A broker in a process of its own: folder, fsync policy, size of a segment.
import { startBroker } from '../../dist/broker/broker.js'

const [journalDir, fsync, segmentBytes] = process.argv.slice(2)
const options = { host: '127.0.0.1', port: 0, maxJobBytes: 65535, journalDir, fsync }
const broker = await startBroker(segmentBytes ? { ...options, segmentBytes: Number(segmentBytes) } : options)
console.log(`ready ${broker.port} ${process.pid}`)
