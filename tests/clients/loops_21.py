#!/usr/bin/env python
# The loops in the manner of DLStudio 2.1: display of training batches, SegmentationLoss, logging
import random, numpy, torch, os, sys, copy, time, logging
import torch.nn as nn
import torch.optim as optim
import torchvision
from SegStudio import *

class Seg21(SegStudio.SemanticSegmentation):
    def run_code_for_training_for_semantic_segmentation(self, net):
        filename_for_out1 = "performance_numbers_" + str(self.dl_studio.epochs) + "label.txt"
        FILE1 = open(filename_for_out1, 'w')
        net = copy.deepcopy(net)
        net = net.to(self.dl_studio.device)
        criterion1 = nn.MSELoss()
        optimizer = optim.SGD(net.parameters(), lr=self.dl_studio.learning_rate, momentum=self.dl_studio.momentum)
        for epoch in range(self.dl_studio.epochs):
            print("")
            running_loss_segmentation = 0.0
            for i, data in enumerate(self.train_dataloader):
                im_tensor, mask_tensor, bbox_tensor = data['image'], data['mask_tensor'], data['bbox_tensor']
                if self.dl_studio.debug_train and i % 2 == 0:
                    print("\n\n[epoch=%d iter=%d:] Displaying training images" % (epoch + 1, i + 1))
                    self.dl_studio.display_tensor_as_image(
                        torchvision.utils.make_grid(im_tensor, normalize=True), "train %d %d" % (epoch, i))
                    self.dl_studio.display_tensor_as_image(
                        torchvision.utils.make_grid(mask_tensor.float().max(dim=1, keepdim=True)[0] / 255.0, pad_value=1))
                im_tensor = im_tensor.to(self.dl_studio.device)
                mask_tensor = mask_tensor.type(torch.FloatTensor)
                mask_tensor = mask_tensor.to(self.dl_studio.device)
                bbox_tensor = bbox_tensor.to(self.dl_studio.device)
                optimizer.zero_grad()
                output = net(im_tensor)
                segmentation_loss = criterion1(output, mask_tensor)
                segmentation_loss.backward()
                optimizer.step()
                running_loss_segmentation += segmentation_loss.item()
                if i % 5 == 4:
                    avg = running_loss_segmentation / float(5)
                    print("[epoch=%d, iter=%4d]  loss: %.3f" % (epoch + 1, i + 1, avg))
                    FILE1.write("%.3f\n" % avg)
                    FILE1.flush()
                    running_loss_segmentation = 0.0
        print("\nFinished Training\n")
        self.save_model(net)

    def save_model(self, model):
        torch.save(model.state_dict(), self.dl_studio.path_saved_model)

    def run_code_for_testing_semantic_segmentation(self, net):
        net.load_state_dict(torch.load(self.dl_studio.path_saved_model))
        batch_size = self.dl_studio.batch_size
        image_size = self.dl_studio.image_size
        max_num_objects = self.max_num_objects
        with torch.no_grad():
            for i, data in enumerate(self.test_dataloader):
                im_tensor, mask_tensor, bbox_tensor = data['image'], data['mask_tensor'], data['bbox_tensor']
                if i % 3 == 0:
                    print("\n\n\n\nShowing output for test batch %d: " % (i + 1))
                    outputs = net(im_tensor)
                    output_bw_tensor = torch.zeros(batch_size, 1, image_size[0], image_size[1], dtype=float)
                    for image_idx in range(batch_size):
                        for m in range(image_size[0]):
                            for n in range(image_size[1]):
                                output_bw_tensor[image_idx, 0, m, n] = torch.max(outputs[image_idx, :, m, n])
                    display_tensor = torch.zeros(7 * batch_size, 3, image_size[0], image_size[1], dtype=float)
                    for idx in range(batch_size):
                        for bbox_idx in range(max_num_objects):
                            bb_tensor = bbox_tensor[idx, bbox_idx]
                            for k in range(max_num_objects):
                                i1, i2 = int(bb_tensor[k][1]), int(bb_tensor[k][3])
                                j1, j2 = int(bb_tensor[k][0]), int(bb_tensor[k][2])
                                for t in (output_bw_tensor, im_tensor):
                                    t[idx, 0, i1:i2, j1] = 255
                                    t[idx, 0, i1:i2, j2] = 255
                                    t[idx, 0, i1, j1:j2] = 255
                                    t[idx, 0, i2, j1:j2] = 255
                    display_tensor[:batch_size, :, :, :] = output_bw_tensor
                    display_tensor[batch_size:2 * batch_size, :, :, :] = im_tensor
                    lims = [(25, 85), (65, 135), (115, 185), (165, 230), (210, 1e9)]
                    for b in range(batch_size):
                        for k in range(max_num_objects):
                            for p in range(image_size[0]):
                                for q in range(image_size[1]):
                                    if lims[k][0] < outputs[b, k, p, q] < lims[k][1]:
                                        outputs[b, k, p, q] = 255
                                    else:
                                        outputs[b, k, p, q] = 50
                            display_tensor[2 * batch_size + batch_size * k + b, :, :, :] = outputs[b, k, :, :]
                    self.dl_studio.display_tensor_as_image(
                        torchvision.utils.make_grid(display_tensor, nrow=batch_size, normalize=True, padding=2, pad_value=10))

dls = SegStudio(dataroot="./data/PurdueShapes5MultiObject/", image_size=[64, 64], path_saved_model="./saved_model",
                momentum=0.9, learning_rate=1e-5, epochs=1, batch_size=4,
                classes=('rectangle', 'triangle', 'disk', 'oval', 'star'), debug_train=1, debug_test=1, use_gpu=True)
segmenter = Seg21(dl_studio=dls, max_num_objects=5)
train = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset(train_or_test='train', dl_studio=dls, segmenter=segmenter, dataset_file="PurdueShapes5MultiObject-20-train.gz")
test = SegStudio.SemanticSegmentation.PurdueShapes5MultiObjectDataset(train_or_test='test', dl_studio=dls, segmenter=segmenter, dataset_file="PurdueShapes5MultiObject-20-test.gz")
segmenter.dataserver_train = train
segmenter.dataserver_test = test
segmenter.load_PurdueShapes5MultiObject_dataset(train, test)
model = segmenter.mUnet(skip_connections=False, depth=4)
crit = segmenter.SegmentationLoss(4)
segmenter.run_code_for_training_for_semantic_segmentation(model)
segmenter.run_code_for_testing_semantic_segmentation(model)
print("all done")
