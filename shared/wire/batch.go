package wire

// minBatchShare is not cut into less: a small batch costs nearly what a larger one does.
const minBatchShare = 128

// BatchShare is how many operations a sender's next batch may have, while so many wait and so many are under way: its even share of all
// of them, MaxBatchOps at most. A batch that took whatever waits would take nearly all, because the answers to a large batch are followed
// by as many new operations at once: the other batches would go nearly empty for ever, and client, leader, followers and disks would
// work one after the other instead of at the same time.
func BatchShare(waiting, underWay int) int {
	share := (waiting + underWay + MaxBatchesInFlight - 1) / MaxBatchesInFlight
	return min(max(share, minBatchShare), MaxBatchOps)
}
